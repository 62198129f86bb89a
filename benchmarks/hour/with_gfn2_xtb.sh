#!/bin/sh
# An hour of two cores that begins with GFN2-xTB; README.md. From the repository root: uv run sh benchmarks/hour/with_gfn2_xtb.sh
# It counts only in one go; delete runs/hour to begin anew.
set -e
ethanol=../shared/data/rmd17_ethanol
hour=runs/hour
began=$(date +%s)
say() { echo "$(( $(date +%s) - began )) s: $*"; }
export OMP_NUM_THREADS=1 # of what is compiled for labels; a training has the threads of its recipe

ggnn-ff label $ethanol/train.xyz --difference --level-of-theory PBE/def2-SVP -o $hour/difference.xyz
say differences
{
    ggnn-ff sample ethanol --frames 12000 --stride 10 --temperature 600 -o $hour/xtb
    ggnn-ff train benchmarks/hour/difference-b.yaml
    ggnn-ff compile $hour/difference-b
} &
ggnn-ff train benchmarks/hour/difference.yaml
ggnn-ff compile $hour/difference
wait $!
say "frames of GFN2-xTB, and two corrections"
corrected="--correction $hour/difference --correction $hour/difference-b"
split -l 66000 $hour/xtb.xyz $hour/xtb-part- --additional-suffix .xyz # 6000 frames each
ggnn-ff label $hour/xtb-part-aa.xyz $corrected -o $hour/corrected-a.xyz &
ggnn-ff label $hour/xtb-part-ab.xyz $ethanol/train.xyz $corrected -o $hour/corrected-b.xyz
wait $!
cat $hour/corrected-a.xyz $hour/corrected-b.xyz > $hour/many.xyz
say labels
ggnn-ff train benchmarks/hour/estimated.yaml
say "trained on them"
ggnn-ff train benchmarks/hour/tuned.yaml
say "trained on the labels of PBE"
