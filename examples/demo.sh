#!/bin/sh
# The main job on a checkpoint that ships with the repository: check, look, convert, and back again.
# Then a tiny model with three adapters, that talk, and take turns in the middle of a sentence.
# Last, adapters that are made of sentences, by the plugin adaptrix-text-to-lora.
set -eu
examples=$(cd "$(dirname "$0")" && pwd)
data=$examples/../tests/data/demo
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

say() { printf '\n$ %s\n' "$*"; "$@"; }

say adaptrix check "$data/adapter" --base "$data/base"
say adaptrix inspect "$data/adapter" --base "$data/base"
say adaptrix convert "$data/adapter" --base "$data/base" --name demo
say adaptrix convert demo.adaptrix.safetensors --to peft -o demo-peft
say cmp "$data/adapter/adapter_model.safetensors" demo-peft/adapter_model.safetensors
echo "Every tensor came back byte for byte."

say python "$examples/04_swap_mid_sentence.py"

say adaptrix generate "Talk like a pirate" --base "$examples/tiny/base"
say python "$examples/05_adapter_from_a_sentence.py"
