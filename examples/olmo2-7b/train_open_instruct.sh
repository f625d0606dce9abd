#!/bin/sh
# One cell of a validation with open-instruct's DPO (dpo_tune_cache.py, DeepSpeed ZeRO-3, 8 GPUs), as its own
# scripts/train/olmo2/dpo_7b.sh has it; flags as of its commit e6c3044. OPEN_INSTRUCT names a checkout of it.
#   train_open_instruct.sh MODEL PAIRS.jsonl OUTPUT SEED STEPS
# It weighs no pairs: leave `weight` out of the plan's interventions, and `weighs` out of its training.
set -eu
pairs=$(realpath "$2") output=$(realpath -m "$3") # a validation names them from the folder that it is started in
model=$1
[ ! -d "$model" ] || model=$(realpath "$model")
cd "${OPEN_INSTRUCT:?set OPEN_INSTRUCT to a checkout of allenai/open-instruct}"
exec accelerate launch \
    --mixed_precision bf16 \
    --num_processes "${PROCESSES:-8}" \
    --use_deepspeed \
    --deepspeed_config_file configs/ds_configs/stage3_no_offloading_accelerate.conf \
    --deepspeed_multinode_launcher standard \
    open_instruct/dpo_tune_cache.py \
    --exp_name validation \
    --model_name_or_path "$model" \
    --tokenizer_name_or_path "$model" \
    --use_slow_tokenizer False \
    --add_bos \
    --mixer_list "$pairs" 1.0 \
    --mixer_list_splits train \
    --output_dir "$output" \
    --do_not_randomize_output_dir True \
    --seed "$4" \
    --max_train_steps "$5" \
    --max_seq_length 2048 \
    --per_device_train_batch_size 1 \
    --gradient_accumulation_steps "$((128 / ${PROCESSES:-8}))" \
    --learning_rate 1e-6 \
    --lr_scheduler_type linear \
    --warmup_ratio 0.1 \
    --weight_decay 0.0 \
    --loss_type dpo_norm \
    --beta 5 \
    --activation_memory_budget 0.5 \
    --logging_steps 10 \
    --push_to_hub False \
    --try_launch_beaker_eval_jobs False
