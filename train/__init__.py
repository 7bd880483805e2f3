"""Pretraining and tuning: what turns token shards into a checkpoint folder."""
