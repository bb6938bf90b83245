#!/usr/bin/env bash
# What a GPU changes, checked and measured in one go of at most 8 minutes (docs/gpu.md): tests on CUDA, decoding, training steps,
# and a real language model through sft, rl and eval. It needs no network. Each part has a time limit of its own, so that one
# that fails does not cost the rest; tables are printed as they come, and OUT keeps them as JSON and logs.
#
#   bash benchmarks/gpu.sh --run RUN --model MODEL [--out OUT] [PART...]
#   bash benchmarks/gpu.sh --tiny [--out OUT] [PART...]     the whole script at tiny size on a CPU; it makes RUN and MODEL itself
#
# RUN is a run whose stages data and sid are finished, MODEL a folder with a language model, or a GGUF file; without them parts
# that need one are left out. OUT (gpu-results) may be shared by calls with other parts. PART is one or more of: tests decode
# compiled sft_step grpo_step sft rl eval lists; all of them by default, in this order. rl and eval go on from what sft left in
# OUT, lists from eval. The variable PYTHON names the interpreter (python3); PYTHON=scripts/python is this checkout's.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
unset PYTHON  # to scripts/python it names the interpreter to build on, which cannot be itself
out=gpu-results tiny= run= model= parts=()
wrong() { echo "$*" >&2; exit 2; }
while [ $# -gt 0 ]; do
  case $1 in
    --run | --model | --out)
      [[ ${2:-} != "" && $2 != -* ]] || wrong "$1: needs a path after it; bash benchmarks/gpu.sh --help explains it."
      printf -v "${1#--}" %s "$2"
      shift ;;
    --tiny) tiny=1 ;;
    --help | -h) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
    -*) wrong "$1: no such option; bash benchmarks/gpu.sh --help lists them." ;;
    *) parts+=("$1") ;;
  esac
  shift
done
known=(tests decode compiled sft_step grpo_step sft rl eval lists)
[ ${#parts[@]} -gt 0 ] || parts=("${known[@]}")
for name in "${parts[@]}"; do
  [[ " ${known[*]} " == *" $name "* ]] || wrong "$name: no such part; they are ${known[*]}."
done
for name in "${parts[@]}"; do  # several calls may share a folder, each with other parts
  [ ! -e "$out/$name.log" ] || wrong "$out: holds $name.log already; delete it, or give another --out."
done
if [ -n "$run" ]; then
  for stage in data sid; do
    [ -e "$run/$stage/manifest.json" ] || wrong "--run $run: no run with a finished stage $stage; make it first (docs/gpu.md, Prepare)."
  done
  run=$(realpath "$run")
fi
if [ -n "$model" ]; then
  [ -e "$model" ] || wrong "--model $model: not found; minionerec model get smollm2-135m prints the folder of one."
  model=$(realpath "$model")
fi
[[ -z $tiny || -n $run || -z $model ]] && [[ -z $tiny || -z $run || -n $model ]] ||
  wrong "--tiny makes a run and a model itself: give both --run and --model, or neither."
trained=$([ -e "$out/run/sft/manifest.json" ] && echo 1)
for name in "${parts[@]}"; do
  case $name in
    sft) trained=1 ;;
    rl | eval | lists)
      [[ -n $trained || ( -z $tiny && ( -z $run || -z $model ) ) ]] ||
        wrong "$name: goes on from what the part sft leaves in --out, and $out has nothing of it; name sft before it." ;;
  esac
done
if [[ -e $out && ! -d $out ]]; then wrong "--out $out: not a folder; give another one."; fi
out=$(realpath -m "$out")
cd "$root"
needed=(torch transformers trl datasets polars jsonargparse rich safetensors psutil plotly scipy sklearn pytest hypothesis)
if [[ $model == *.gguf ]] || { [ -n "$model" ] && compgen -G "$model/*.gguf" > /dev/null; }; then needed+=(gguf); fi
lacks=$("$python" -c 'import importlib.util as u, sys; print(*(n for n in sys.argv[1:] if not u.find_spec(n)))' "${needed[@]}") ||
  wrong "$python: does not run; PYTHON names the interpreter."
[ -z "$lacks" ] || wrong "$python lacks ${lacks/sklearn/scikit-learn}: name another interpreter, such as PYTHON=scripts/python, or install what is missing."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1

# Time limits in seconds: with what a part may take to end, and 12 s for the checks before the first, 8 minutes together. A busy
# CPU may take longer over the tiny ones.
declare -A limits=([tests]=80 [decode]=60 [compiled]=28 [sft_step]=55 [grpo_step]=70 [sft]=58 [rl]=32 [eval]=42 [lists]=25)
grace=2  # seconds that a part has to end when its time is over
if [ -n "$tiny" ]; then
  for name in "${!limits[@]}"; do limits[$name]=600; done
  if [ -z "$run" ] || [ -z "$model" ]; then
    if [ ! -e "$out/tiny/model" ]; then  # an earlier call has made it
      mkdir -p "$out"
      "$python" benchmarks/gpu_tiny.py "$out/tiny" > "$out/tiny.log" 2>&1 || { tail -n 20 "$out/tiny.log"; exit 1; }
    fi
    run=$out/tiny/run model=$out/tiny/model
  fi
else
  "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || wrong "No GPU here; --tiny needs none."
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
fi

limited() {  # a command and all that it starts, which end when the part's time is over
  timeout --kill-after="$grace" "${limits[$name]}" "$@"
}
product() {  # a stage of the product, on the prepared run
  local stage=$1; shift
  limited "$python" -m minionerec "$stage" --config "$run" --out "$out/run" --model.init from_pretrained --model.path "$model" "$@"
}
mkdir -p "$out"
decode=(--seconds 50) sft=() grpo=() training=() policy=() measured=()
if [ -n "$tiny" ]; then
  decode=(--device cpu --beams 5 --repeats 2 --seconds 600)
  cells=(tiny:1:20 tiny:3:20) compiled=(tiny:2:32 --backend eager)
  sft=(--examples 64 --hidden 32 --repeats 1 --seconds 0.1 --micro 16 --padded-micro 8 --sides packed)
  grpo=(--model tiny --prompts 12 --generations 4 --per-step 4 --micro-prompts 4 --peer-micro-prompts 2 --steps 1 --repeats 1)
  users=20
else
  cells=(small:4:200 0.5b:1:200 0.5b:8:200 0.5b:32:200 0.5b:256:100 1.5b:1:200 0.5b:64:200 0.5b:256:200)
  compiled=(0.5b:1:208)  # as long as its bucket, so that graphs and launches compile the same shapes
  sft=(--device cuda --bf16 --model 0.5b --repeats 1 --seconds 2 --micro 512 --row-tokens 512 --padded-micro 128)
  sft+=(--packed-tokens 8192 --sides packed)
  grpo=(--device cuda --bf16 --model 0.5b --prompts 200 --generations 16 --per-step 16 --micro-prompts 16
        --peer-micro-prompts 4 --steps 3 --repeats 1 --profile)  # each side as many prompts at once as are fastest, or fit
  # As the presets have it, but fewer steps and checkpoints: the aim is that every stage runs and learns, not its best model.
  training=(--sft.epochs 2 --sft.evaluations 2 --sft.max_examples 5000 --sft.valid_examples 512 --sft.row_tokens auto)
  policy=(--rl.max_examples 256 --rl.valid_examples 256 --rl.evaluations 1 --rl.checkpoints 1)
  measured=(--eval.resamples 200 --eval.oracle_examples 0)
  users=512
fi
if [ -n "$run" ]; then decode+=(--run "$run"); sft+=(--run "$run"); grpo+=(--run "$run"); fi

part() {  # what one part runs
  case $1 in
    tests)
      limited "$python" -m pytest -m cuda -q -p no:cacheprovider --junitxml "$out/tests.xml" \
        tests/tree/test_graphs.py tests/tree/test_graphs_mixed.py tests/tree/test_on_gpu.py tests/pipeline/test_on_gpu.py ;;
    decode) limited "$python" benchmarks/gpu_decode.py --cells "${cells[@]}" "${decode[@]}" --out "$out/decode.json" ;;
    compiled)
      limited "$python" benchmarks/gpu_decode.py --compiled parts "${decode[@]}" --out "$out/compiled.json" --cells "${compiled[@]}" ;;
    sft_step) limited "$python" benchmarks/sft_step.py "${sft[@]}" --out "$out/sft_step.json" ;;
    grpo_step) limited "$python" benchmarks/grpo_step.py "${grpo[@]}" --out "$out/grpo_step.json" ;;
    sft) product sft ${training[@]+"${training[@]}"} ;;
    rl) product rl ${training[@]+"${training[@]}"} ${policy[@]+"${policy[@]}"} ;;
    eval) product eval ${training[@]+"${training[@]}"} ${policy[@]+"${policy[@]}"} ${measured[@]+"${measured[@]}"} ;;
    lists) limited "$python" benchmarks/gpu_lists.py "$out/run" --users "$users" --out "$out/lists.json" ;;
  esac
}

failed=0
for name in "${parts[@]}"; do
  if [[ " sft rl eval lists " == *" $name "* && ( -z $run || -z $model ) ]]; then
    echo "== $name: left out, it needs --run and --model"; continue
  fi
  if [ "$name" = sft ]; then  # the prepared run stays as it is
    mkdir -p "$out/run" && for stage in data sid; do cp -r "$run/$stage" "$out/run/"; done
  fi
  echo "== $name (at most ${limits[$name]} s)"
  started=$SECONDS
  part "$name" 2>&1 | tee "$out/$name.log"
  status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || failed=1
  echo "== $name: status $status, $((SECONDS - started)) s"
  echo "{\"part\": \"$name\", \"status\": $status, \"seconds\": $((SECONDS - started)), \"limit\": ${limits[$name]}}" >> "$out/parts.jsonl"
done
echo "== all parts: $SECONDS s"
cat "$out/parts.jsonl"
exit "$failed"
