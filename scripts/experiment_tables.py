"""What scripts/experiment.sh found, as Markdown.

    python3 scripts/experiment_tables.py FOLDER

FOLDER holds runs/ (logs of training), validation/ and results/ (folders that `llamantino eval --out` wrote). The searches
are compared on validation texts, the stages on test texts and tasks with their 95 % intervals.
"""

import json
import pathlib
import sys

TEXTS = ["italian", "out-of-domain", "english"]
# The metric that each task is ranked by, and the share of answers in the form asked for.
TASKS = {"xcopa_it": "acc", "exams_it": "acc_norm", "haspeede": "macro_f1", "hodi_a": "macro_f1", "acti_a": "macro_f1",
         "emit_b": "macro_f1", "langlearn": "macro_f1"}
STAGES = ["adapt", "chat", "tasks"]


def row(cells):
    print("| " + " | ".join(cells) + " |")


def header(cells):
    row(cells)
    row(["---"] * len(cells))


def log_of(folder):
    """The lines of a training log; those of a stopped run that was resumed come once."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def measured(log, step):
    return {line["set"]: line["bits_per_byte"] for line in log if line["event"] == "eval" and line["step"] == step}


def search(runs):
    header(["run", *TEXTS])
    before = None
    for folder in sorted(runs.glob("search-*/1-adapt")):
        # Searches of the last stage have the first of seed 1.
        if not (folder / "adapter").exists() or folder.parent.name.startswith("search-tasks-"):
            continue
        log = log_of(folder)
        last = max(line["step"] for line in log)
        if before is None:
            before = measured(log, 0)
            row(["before", *(f"{before[text]:.3f}" for text in TEXTS)])
        after = measured(log, last)
        row([folder.parent.name.removeprefix("search-"), *(f"{after[text]:.3f}" for text in TEXTS)])


def last_stage(folder):
    """The search of the last stage: validation texts, and the rows of tasks that were held out."""
    header(["last stage", *TEXTS, "tasks held out"])
    for path in sorted((folder / "validation").glob("*/results.json")):
        name = path.parent.name
        tasks = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        texts = [f"{tasks[text]['metrics']['bits_per_byte']['value']:.3f}" for text in TEXTS]
        stage = folder / "runs" / name / "3-tasks"
        found = [line for line in log_of(stage) if line["event"] == "eval"] if stage.exists() else []
        row([name.removeprefix("search-tasks-"), *texts, f"{found[-1]['bits_per_byte']:.3f}" if found else "-"])


def cost(runs):
    header(["run", *STAGES])
    for folder in sorted(runs.glob("seed-*")):
        cells = [folder.name]
        for number, stage in enumerate(STAGES, 1):
            path = folder / f"{number}-{stage}"
            steps = [line for line in log_of(path) if line["event"] == "step"] if (path / "log.jsonl").exists() else []
            cells.append(f"{steps[-1]['tokens']:,} tokens, {steps[-1]['rss_mib']} MiB" if steps else "-")
        row(cells)


def stages(results):
    found = {}
    for name in ["base"] + [f"seed-{seed}-{stage}" for seed in (1, 2) for stage in STAGES]:
        path = results / name / "results.json"
        if path.exists():
            found[name] = json.loads(path.read_text(encoding="utf-8"))["tasks"]
    header(["", *found])

    def cells(task, metric):
        for tasks in found.values():
            value = tasks.get(task, {}).get("metrics", {}).get(metric)
            if value is None:
                yield "-"
            elif metric == "well_formed":
                yield f"{value['value']:.2f}"
            else:
                digits = 3 if metric == "bits_per_byte" else 2
                low, high = value["interval_95"] or (float("nan"), float("nan"))
                yield f"{value['value']:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"

    for text in TEXTS:
        row([f"{text}, bits per byte", *cells(text, "bits_per_byte")])
    for task, metric in TASKS.items():
        row([f"{task}, {metric}", *cells(task, metric)])
    for task, metric in TASKS.items():
        if metric == "macro_f1":
            row([f"{task}, answers in form", *cells(task, "well_formed")])


def main():
    folder = pathlib.Path(sys.argv[1])
    parts = [(search, folder / "runs"), (last_stage, folder), (cost, folder / "runs"), (stages, folder / "results")]
    for part, path in parts:
        part(path)
        print()


if __name__ == "__main__":
    main()
