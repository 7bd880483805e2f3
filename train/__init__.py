"""Pretraining and fine-tuning: from token shards to a checkpoint folder."""
