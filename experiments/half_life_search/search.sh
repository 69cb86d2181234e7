#!/bin/sh
# The four studies of the README, one after another: sh search.sh OUT ONLINE_RETAIL_DIR MOVIELENS_DIR
# Run again, it goes on where it was stopped. From the repository's root, OUT outside of it.
set -e
for pruner in none median; do
  for data in online_retail movielens; do
    test "$data" = movielens && root=$3 || root=$2
    test "$pruner" = median && begin=hydra.sweeper.pruner.n_startup_trials=10 || begin=
    OMP_NUM_THREADS=1 python train.py -m search=half_life search.n_trials=100 data=$data data.root="$root" \
      model=bert_frozen decay=exponential logger=none refit=false metrics=[auc] data.batch_size=256 \
      trainer.max_epochs=4 trainer.limit_train_batches=10 trainer.limit_val_batches=2 trainer.limit_test_batches=1 \
      hydra.sweep.dir="$1/$data-$pruner" hydra.sweeper.sampler.seed=1 hydra/sweeper/pruner=$pruner $begin
  done
done
