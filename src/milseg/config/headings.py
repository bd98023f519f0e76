"""Under which heading of `--help` an option stands, and what stands for its value there."""

from __future__ import annotations

# In the order of `--help`. An option without a heading stands under the last one.
HEADINGS: dict[str, tuple[str, ...]] = {
    "Source": (
        *("source", "inputs", "folders", "root", "tags", "split", "classes", "tags_are", "background"),
        *("background", "ignore_unknown_tags", "kind", "tags_key", "cache", "cache_size", "max_pixels"),
        *("sbd", "year", "train_set", "val_set", "val_split", "scenes", "names"),
    ),
    "Masks to score": ("pred", "labels", "pred_values", "truth", "truth_labels", "truth_values", "reading"),
    "Model": (
        *("model", "backbone", "weights", "mapping", "output_stride", "vgg_padding", "score_scale"),
        *("rows", "pretrain_steps"),
    ),
    "Training": (
        *("recipe", "rule", "rules", "seeds", "rounds", "max_steps", "time_budget", "batch_size"),
        *("optimizer", "learning_rate", "learning_rates", "oracle_learning_rate", "score_rate", "momentum"),
        *("weight_decay", "schedule", "frozen_stride", "longest_side", "augment", "hold_out"),
        *("select_every", "checkpoint_every", "precision", "accumulate", "compile", "ablations", "seed"),
    ),
    "Masks": ("class_bias", "random_walk", "refine", "scales"),
    "Files": (
        *(
            "out",
            "format",
            "labelstudio_prefix",
            "to",
            "int8",
            "no_overlays",
            "shard",
            "shard_size",
            "photos_per_shard",
        ),
        *("competition", "json", "document_root"),
    ),
    "Server": (
        *("host", "port", "batch", "queue", "max_body", "token_file", "no_token", "allow_host"),
        *("examples", "label_studio_url", "label_studio_token_file"),
    ),
    "Run": ("device", "workers", "resume", "overwrite"),
}
HEADING_OF = {name: heading for heading, names in HEADINGS.items() for name in names}

# What stands for a value where its type alone says little.
METAVARS = {
    "weights": "FILE",
    "time_budget": "TIME",
    "cache_size": "SIZE",
    "shard_size": "SIZE",
    "shard": "I/N",
    "class_bias": "A=X,...",
    "int8": "PHOTOS",
    "model": "MODEL",
    "label_studio_url": "URL",
    "tags": "FILE",
    "mapping": "FILE",
    "truth_labels": "FILE",
    "truth_values": "N=NAME,...",
    "pred_values": "N=NAME,...",
    "labels": "FILE",
    "names": "FILE",
    "token_file": "FILE",
    "label_studio_token_file": "FILE",
}


def heading_of(name: str) -> str:
    return HEADING_OF.get(name, next(reversed(HEADINGS)))
