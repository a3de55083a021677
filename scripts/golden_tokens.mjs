// Token ids by llama.cpp: makes tests/golden/smollm2/tokens.json, which tests/smollm2.rs compares with.
//
//   (cd SOMEWHERE && npm install node-llama-cpp)      llama.cpp prebuilt, for the CPU
//   eval "$(scripts/assets.sh)" && node scripts/golden_tokens.mjs SOMEWHERE "$LLAMANTINO_SMOLLM2"
//
// The texts are those of tests/golden/smollm2/texts.json, taken as plain text: control tokens in them are not parsed, and
// nothing is added at either end.

import { createHash } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [place, modelPath] = process.argv.slice(2);
const root = resolve(dirname(fileURLToPath(import.meta.url)), "..");
const golden = join(root, "tests/golden/smollm2");
const require = createRequire(join(resolve(place), "package.json"));
const entry = join(resolve(place), "node_modules/node-llama-cpp");
const { version } = JSON.parse(readFileSync(join(entry, "package.json"), "utf8"));
const { getLlama } = await import(pathToFileURL(require.resolve("node-llama-cpp")));

const llama = await getLlama({ gpu: false, build: "never", skipDownload: true });
const model = await llama.loadModel({ modelPath, vocabOnly: true });
const listed = JSON.parse(readFileSync(join(golden, "texts.json"), "utf8"));
const texts = [...listed.texts, ...listed.files.map((file) => readFileSync(join(root, file), "utf8"))];
const ids = texts.map((text) => Array.from(model.tokenize(text, false)));
const about = {
  made_by: `node-llama-cpp ${version}, llama.cpp ${llama.llamaCppRelease.release}`,
  model_sha256: createHash("sha256").update(readFileSync(modelPath)).digest("hex"),
};
const lines = ids.map((line) => `[${line.join(", ")}]`).join(",\n");
writeFileSync(join(golden, "tokens.json"), `${JSON.stringify(about).slice(0, -1)}, "ids": [\n${lines}\n]}\n`);
console.error(`${ids.length} texts, ${ids.flat().length} tokens`);
await llama.dispose();
