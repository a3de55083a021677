#!/usr/bin/env bash
# The experiment of the README, "Does it help?": search, three stages with two seeds, and what each stage is worth.
#
#   scripts/experiment.sh sources CLONES SOURCES   makes SOURCES of clones of five public repositories
#   scripts/experiment.sh data SOURCES     splits the data into experiment/data
#   scripts/experiment.sh search           short runs that differ in one value, compared on validation texts
#   scripts/experiment.sh train            configs/experiment.toml with two seeds
#   scripts/experiment.sh search-tasks     the last stage of seed 1 in other ways, compared on validation texts and tasks
#   scripts/experiment.sh measure          the base and every stage on the test texts and tasks: read once, at the end
#   scripts/experiment.sh tables           what was found, as Markdown
#
# Everything happens in ./experiment; what is finished is not done again. `llamantino` must be on the PATH (or
# $LLAMANTINO); the model comes out of a package, as the header of configs/smollm2-135m-italian.toml says, and lies in
# ./smollm2-135m; the manuals lie in ./italian-manuals.
#
# SOURCES is a folder with these files:
#   wiki_it/*.json.gz                    Italian Wikipedia paragraphs, as {"timestamp", "url", "text"} lines: those of
#                                        data/exams/cross-lingual/with_paragraphs/{train,dev}_it_with_para.jsonl.tar.gz in
#                                        github.com/mhardalov/exams-qa (f859e665de, CC BY-SA 4.0), every sentence once
#   exams_it/test.jsonl                  the Italian questions of data/exams/multilingual/test of the same repository
#   xcopa_it/test.it.jsonl               data/it/test.it.jsonl in github.com/cambridgeltl/xcopa (e2e9d7f105, CC BY 4.0)
#   dialogue_it/ilisten_ultrachat.jsonl  the dialogues of ILISTEN/ in github.com/evalita2018/data (efa82953a3, CC BY-NC-SA
#                                        3.0 IT) as {"id", "data": [turns]}, with "Ciao!" before those that the system begins
#   dialogue_it/qa4faq_dolly.jsonl       questions and answers of qa4faq/ in github.com/evalita2016/data (dad1265a65,
#                                        CC BY-NC-SA 3.0 IT) as {"instruction", "context", "response", "category"}
#   evalita/{train,dev}_100.tsv          data/{train,dev}_100.txt in github.com/crux82/CLiC-it_2023_tutorial (e851055595)
#
# `sources` makes these files of clones of the five (in CLONES, the two called `data` as evalita2016-data and
# evalita2018-data), for example:
#   git clone https://github.com/evalita2018/data CLONES/evalita2018-data && git -C CLONES/evalita2018-data checkout efa82953a3
# Which sentences of Wikipedia come into which record depends on where sentences are cut: the published figures are of
# files made once, before this script, so a repetition has the same kinds of text in slightly other records.
#
# Two more come out of Debian packages (scripts/italian-manuals.sh): the Debian handbook in Italian and English, and
# LibreOffice's English help. configs/chain-smollm2.toml is a chain from packages alone.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
config=$here/../configs/experiment.toml
runs=experiment/runs
run() { "${LLAMANTINO:-llamantino}" "$@"; }

# search NAME [--set ...]: the first stage for 20,000 tokens; two at a time with one thread each, which wait for nobody.
search() {
  local name=search-$1
  shift
  [ -d "$runs/$name/1-adapt/adapter" ] && return
  [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
  echo "$name" >&2
  run train "$config" --stage adapt --set training.threads=1 --set "name=$name" --set stage.adapt.training.tokens=20000 "$@" \
    >"experiment/$name.log" 2>&1 &
}

# last NAME [--set ...]: the last stage again, after the first two of seed 1.
last() {
  local name=search-tasks-$1
  shift
  [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
  echo "$name" >&2
  if [ ! -d "$runs/$name" ]; then
    mkdir "$runs/$name"
    cp -r "$runs/seed-1/chain.toml" "$runs/seed-1/1-adapt" "$runs/seed-1/2-chat" "$runs/$name/"
  fi
  (run train "$config" --set training.threads=1 --set "name=$name" --set seed=1 --set 'evaluation=[]' "$@" \
    >"experiment/$name.log" 2>&1 && validate "$name" --model "$runs/$name/2-chat/merged" --adapter "$runs/$name/3-tasks/adapter") &
}

# validate NAME --model MODEL [--adapter ADAPTER]: validation texts and tasks into experiment/validation/NAME.
validate() {
  local name=$1 data=experiment/data tasks=()
  shift
  for task in haspeede hodi_a acti_a emit_b langlearn; do tasks+=(--task "$task=$data/evalita/validation.tsv"); done
  run eval "$@" --nf4 --compute bf16 --threads 1 --template extremita --window 512 --stride 512 \
    --text "italian=$data/italian/validation.jsonl" --text "out-of-domain=$data/out-of-domain/validation.jsonl" \
    --text "english=$data/english/validation.jsonl" "${tasks[@]}" --out "experiment/validation/$name" \
    >"experiment/validate-$name.log" 2>&1
}

# measure NAME --model MODEL [--adapter ADAPTER]: test texts and tasks into experiment/results/NAME, as it was trained: in NF4.
measure() {
  local name=$1 data=experiment/data tasks=()
  shift
  for task in haspeede hodi_a acti_a emit_b langlearn; do tasks+=(--task "$task=$data/evalita/test.tsv"); done
  [ "$(jobs -rp | wc -l)" -lt 2 ] || wait -n
  echo "$name" >&2
  run eval "$@" --nf4 --compute bf16 --threads 1 --template extremita --limit 100 --window 512 --stride 512 \
    --text "italian=$data/italian/test.jsonl" --text "out-of-domain=$data/out-of-domain/test.jsonl" \
    --text "english=$data/english/test.jsonl" --task "xcopa_it=$data/xcopa_it/test.it.jsonl" \
    --task "exams_it=$data/exams_it/test.jsonl" "${tasks[@]}" --out "experiment/results/$name" \
    >"experiment/measure-$name.log" 2>&1 &
}

case ${1:-} in
sources)
  [ $# -eq 3 ] || { echo "usage: scripts/experiment.sh sources CLONES SOURCES" >&2; exit 2; }
  python3 "$here/experiment_sources.py" "$2" "$3"
  ;;
data)
  [ $# -eq 2 ] || { echo "usage: scripts/experiment.sh data SOURCES" >&2; exit 2; }
  [ -d italian-manuals/packages ] || "$here/italian-manuals.sh" italian-manuals
  python3 "$here/experiment_data.py" "$2" italian-manuals experiment/data
  ;;
search)
  rate=(--set optimizer.learning_rate=${RATE:-2e-3})
  replay='[{paths=["experiment/data/italian/train.jsonl"],weight=3},{paths=["experiment/data/replay/train.jsonl"],weight=1}]'
  for learning_rate in 1e-3 2e-3 4e-3; do search "rate-$learning_rate" --set "optimizer.learning_rate=$learning_rate"; done
  search rank-8 "${rate[@]}" --set lora.r=8 --set lora.alpha=16
  search rank-64 "${rate[@]}" --set lora.r=64 --set lora.alpha=16
  search rank-64-rslora "${rate[@]}" --set lora.r=64 --set lora.alpha=16 --set lora.rslora=true
  search rank-64-rslora-alpha-64 "${rate[@]}" --set lora.r=64 --set lora.alpha=64 --set lora.rslora=true
  search replay "${rate[@]}" --set 'stage.adapt.data.paths=[]' --set "stage.adapt.data.source=$replay"
  wait
  ;;
train)
  for seed in 1 2; do
    # What is measured afterwards need not be measured on the way.
    run train "$config" --set training.threads=1 --set "name=seed-$seed" --set "seed=$seed" --set 'evaluation=[]' \
      >"experiment/seed-$seed.log" 2>&1 &
  done
  wait
  ;;
search-tasks)
  only='[{paths=["experiment/data/evalita/train.tsv"],held_out_files=["experiment/data/evalita/validation.tsv"],template="extremita",weight=1}]'
  last replay
  last replay-half-rate --set stage.tasks.optimizer.learning_rate=5e-4
  last without-replay --set "stage.tasks.data.source=$only" --set stage.tasks.training.tokens=25000
  validate chat --model smollm2-135m --adapter "$runs/seed-1/2-chat/adapter"
  wait
  ;;
measure)
  measure base --model smollm2-135m
  for seed in 1 2; do
    chain=$runs/seed-$seed
    measure "seed-$seed-adapt" --model smollm2-135m --adapter "$chain/1-adapt/adapter"
    measure "seed-$seed-chat" --model smollm2-135m --adapter "$chain/2-chat/adapter"
    measure "seed-$seed-tasks" --model "$chain/2-chat/merged" --adapter "$chain/3-tasks/adapter"
  done
  wait
  ;;
tables)
  python3 "$here/experiment_tables.py" experiment
  ;;
*)
  echo "usage: scripts/experiment.sh sources CLONES SOURCES | data SOURCES | search | train | search-tasks | measure | tables" >&2
  exit 2
  ;;
esac
