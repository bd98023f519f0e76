"""Takes the guard of each case out, in a copy of the tree, and shows that a test of the case then fails.

    python tests/reliability/guards.py [NUMBER ...]

Prints the table of docs/reliability.md; exit status 1 where a test did not notice. The tree itself is never touched.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parents[2]

# What the tests load and is not ours, once for all forks.
import matplotlib.pyplot
import pytest
import skimage.segmentation
import sklearn.datasets
import torch
import torchvision


class Guard(NamedTuple):
    file: str  # below src/milseg
    old: str
    new: str
    test: str  # below tests
    words: str


GUARDS: dict[int, Guard] = {
    1: Guard(
        "training/trainer.py",
        "torch.manual_seed(mixed(config.seed, 2, step))",
        "pass",
        "training/test_trainer.py::test_resuming_with_dropout_draws_the_same_units",
        "random numbers keyed by seed and step",
    ),
    2: Guard(
        "utils/files.py",
        "temporary = _temporary(path)\n    try:\n        yield",
        "temporary = path\n    try:\n        yield",
        "utils/test_files.py::test_a_killed_process_leaves_the_old_file_and_its_leftover_can_be_removed",
        "writing beside the file, not into it",
    ),
    3: Guard(
        "utils/files.py",
        "if error.errno in _NO_SPACE:",
        "if False:",
        "reliability/test_disk.py::test_a_disk_that_fills_while_training",
        "a full disk is the user's message",
    ),
    4: Guard(
        "utils/files.py",
        "    refuse_existing(folder, overwrite=True)\n    check_writable(folder)",
        "    refuse_existing(folder, overwrite=True)",
        "reliability/test_disk.py::test_a_read_only_folder_is_told_before_work_starts",
        "the trial file before work starts",
    ),
    5: Guard(
        "training/trainer.py",
        "stopped = distributed.any_of(stops.asked())",
        "stopped = False",
        "training/test_run.py::test_a_signal_in_a_run_stops_it_and_resume_goes_on",
        "looking for a signal after each step",
    ),
    6: Guard(
        "training/trainer.py",
        "if not math.isfinite(value):",
        "if False:",
        "training/test_trainer.py::test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays",
        "the check of the loss",
    ),
    7: Guard(
        "rules/loss_map.py",
        "if scores.dtype in (torch.float16, torch.bfloat16):",
        "if False:",
        "rules/test_contract.py::test_half_precision_gives_a_finite_float32_loss",
        "scores to float32 before the softmax",
    ),
    8: Guard(
        "rules/choosing.py",
        "return weights / weights.sum(dim=(1, 2, 3), keepdim=True).clamp_min(1)",
        "return weights / weights.sum(dim=(1, 2, 3), keepdim=True)",
        "reliability/test_void.py::test_a_mask_of_void_alone_is_a_connected_zero",
        "at least 1 below the line",
    ),
    9: Guard(
        "evaluation/confusion.py",
        "scored = (union > 0) & ~np.isin(",
        "scored = ~np.isin(",
        "evaluation/test_evaluate.py::test_an_absent_class_is_nan_and_its_false_positives_score_0",
        "classes without a pixel leave the mean",
    ),
    10: Guard(
        "data/sources/build.py",
        'if keep_all or (background and not (untagged == "leave out" and not nothing)):',
        "if keep_all:",
        "test_bad_input.py::test_photos_without_a_tag",
        "keeping photos without a tag",
    ),
    11: Guard(
        "data/sources/build.py",
        "        if not ignore_unknown:\n            raise",
        "        if False:\n            raise",
        "test_bad_input.py::test_an_unknown_tag",
        "the error at an unknown tag",
    ),
    12: Guard(
        "data/sources/folder.py",
        "classes=tuple(tags),",
        "classes=(),",
        "data/sources/test_folder.py::test_an_empty_folder_keeps_its_place",
        "classes from folders, not from photos",
    ),
    13: Guard(
        "data/sources/tag_file.py",
        "data[len(mark) :].decode(",
        "data.decode(",
        "test_bad_input.py::test_a_byte_order_mark_and_semicolons",
        "skipping the byte order mark",
    ),
    14: Guard(
        "data/image.py",
        "    except Exception as error:\n        # Decoders raise",
        "    except ZeroDivisionError as error:\n        # Decoders raise",
        "training/test_run.py::test_a_truncated_photo_is_named_and_left_out",
        "what decoders raise becomes a message",
    ),
    15: Guard(
        "data/image.py",
        "if width * height * weight > max_pixels:",
        "if False:",
        "data/test_image.py::test_a_bomb_is_refused_before_decoding",
        "counting pixels before decoding",
    ),
    16: Guard(
        "data/value_range.py",
        "numbers = (numbers - low) * (255.0 / (high - low))",
        "numbers = numbers - low",
        "data/test_image.py::test_16_bit_grey_is_scaled_not_clipped",
        "scaling 16 bits to 8",
    ),
    17: Guard(
        "data/raster.py",
        "UPRIGHT.get(orientation, (False, ()))",
        "(False, ())",
        "data/test_image.py::test_exif_orientation",
        "turning the photo upright",
    ),
    18: Guard(
        "serve/problems.py",
        "return Problem(422, str(error)).response()",
        "raise error",
        "serve/test_overload.py::test_damaged_photos_cost_no_memory[300]",
        "a photo that is refused is no failure of the server",
    ),
    19: Guard(
        "data/sources/build.py",
        "if stem in stems:",
        "if False:",
        "test_bad_input.py::test_one_stem_in_two_folders_is_fine_with_two_extensions_it_is_not",
        "looking for equal stems",
    ),
    20: Guard(
        "utils/files.py",
        "if not (resume or overwrite) and holds_files(folder):",
        "if False:",
        "test_bad_input.py::test_an_output_folder_that_holds_files",
        "looking into the output folder",
    ),
    21: Guard(
        "models/weights.py",
        "weights_only=True",
        "weights_only=False",
        "models/test_weights.py::test_code_in_a_pickle_is_not_run",
        "torch's reader of plain tensors",
    ),
    22: Guard(
        "utils/tensors.py",
        "    except (SafetensorError, OSError, ValueError) as error:\n        raise UserError(\n"
        '            f"{path}: damaged',
        '    except ZeroDivisionError as error:\n        raise UserError(\n            f"{path}: damaged',
        "reliability/test_hostile_files.py::test_hostile_safetensors_are_told_without_memory",
        "what safetensors raises becomes a message",
    ),
    23: Guard(
        "data/sources/names.py",
        "if found is None and leads_out(written):",
        "if False:",
        "test_bad_input.py::test_paths_that_lead_out",
        "telling a path that leads out",
    ),
    24: Guard(
        "data/sources/voc_layout.py",
        "forbid_dtd=True",
        "forbid_dtd=False, forbid_entities=False",
        "data/sources/test_open.py::test_bad_annotations",
        "refusing document types and entities",
    ),
    25: Guard(
        "serve/middleware.py",
        "if size > self.max_body:",
        "if False:",
        "serve/test_middleware.py::TestTooLarge::test_chunked",
        "counting the bytes that come",
    ),
    26: Guard(
        "serve/engine.py",
        "if self.taken >= self.capacity:",
        "if False:",
        "serve/test_overload.py::test_a_full_line_is_503_at_once",
        "the bound of the line",
    ),
    27: Guard(
        "training/grad_accumulation.py",
        "except torch.OutOfMemoryError:",
        "except ZeroDivisionError:",
        "training/test_trainer.py::test_too_little_memory_halves_the_pieces_and_says_so_once",
        "going on with smaller pieces",
    ),
    28: Guard(
        "data/sampler.py",
        "return torch.Generator().manual_seed(mixed(seed, stream, number))",
        "return (lambda drawn: (drawn.seed(), drawn)[1])(torch.Generator())",
        "training/test_trainer.py::test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others",
        "random numbers keyed by the seed",
    ),
    29: Guard(
        "evaluation/evaluate.py",
        "mine = bags.bags[distributed.share(len(bags))]",
        "mine = bags.bags",
        "reliability/test_evaluation_in_processes.py::test_evaluation_in_processes_equals_that_of_one",
        "each process scores its share",
    ),
    30: Guard(
        "rules/choosing.py",
        "best = candidates.argmin(dim=2, keepdim=True)",
        "best = candidates.argmax(dim=2, keepdim=True)",
        "rules/test_contract.py::test_it_equals_the_slow_equation",
        "the arg-min of the loss map",
    ),
    31: Guard(
        "models/fcn.py",
        "images = _at_least(images, self.minimum)",
        "pass",
        "models/test_fcn.py::test_any_size",
        "padding what is too small",
    ),
    32: Guard(
        "data/sources/tag_file.py",
        "    except UnicodeDecodeError as error:\n        line = data.count",
        "    except ZeroDivisionError as error:\n        line = data.count",
        "data/sources/test_tag_file.py::test_only_the_documented_error_escapes",
        "bytes that are no UTF-8 become a message",
    ),
    33: Guard(
        "data/mask_checks.py",
        "    _refuse_binary(found, reading)\n",
        "",
        "data/test_mask_checks.py::test_0_and_255_alone_are_no_background_and_void",
        "looking at the values of all masks together",
    ),
    34: Guard(
        "experiments/compare_tasks.py",
        "shared_settings(EvaluateOptions, options, split=options.val_split)",
        "EvaluateOptions(source=options.source, truth=options.truth, split=options.val_split)",
        "experiments/test_compare.py::test_tags_elsewhere_are_read_for_the_photos_to_score_too",
        "settings that go over by name",
    ),
    35: Guard(
        "experiments/compare.py",
        "if not len(task.held):",
        "if False:",
        "experiments/test_compare.py::test_nothing_held_out",
        "a held-out part of no photo",
    ),
    36: Guard(
        "evaluation/evaluate.py",
        "except UserError as error:",
        "except ZeroDivisionError as error:",
        "data/sources/test_evaluation_set.py::test_photos_that_cannot_be_read_are_left_out_and_counted",
        "leaving out what cannot be read",
    ),
    37: Guard(
        "config/fields.py",
        "return limits.infinite and value == math.inf",
        "return True",
        "inference/test_model_folder.py::test_values_of_the_settings_that_make_no_sense",
        "refusing numbers that are not finite",
    ),
    38: Guard(
        "inference/onnx_check.py",
        "if not 0 < count <= MOST_MAP * pixels or min(sizes[name]) < 0:",
        "if False:",
        "inference/test_onnx_network.py::test_graphs_that_milseg_does_not_write",
        "bounding the maps of a graph",
    ),
    39: Guard(
        "data/shards/read.py",
        '        _check_rows(record["shards"])\n',
        "",
        "data/shards/test_read.py::test_a_manifest_that_makes_no_sense",
        "checking each row of a manifest",
    ),
    40: Guard(
        "data/shards/cache.py",
        '    except OSError as error:\n        raise UserError(\n            f"{folder}: the cache',
        '    except ZeroDivisionError as error:\n        raise UserError(\n            f"{folder}: the cache',
        "data/shards/test_read.py::test_a_cache_that_cannot_be_written_is_named",
        "a cache that cannot be written becomes a message",
    ),
    41: Guard(
        "utils/console.py",
        '        reconfigure(errors="backslashreplace")',
        "        pass",
        "utils/test_console.py::test_a_console_that_is_not_utf8_prints_what_it_can",
        "what a console cannot print is written by number",
    ),
    42: Guard(
        "config/values.py",
        "            choice.check(name)",
        "            pass",
        "test_cli.py::test_names_are_checked_before_anything_is_read",
        "names are held against their tables at once",
    ),
    43: Guard(
        "training/plan.py",
        "    steps = max(1, steps)\n",
        "",
        "training/test_run.py::test_a_budget_of_next_to_nothing_trains_a_step_and_says_what_to_expect",
        "one step at least",
    ),
    44: Guard(
        "inference/prediction_files.py",
        ' - 2 * bool(entry["data"].get("review"))',
        "",
        "inference/test_prediction_run.py::test_masks_that_are_surely_wrong_come_before_the_uncertain_ones",
        "masks that are surely wrong before uncertain ones",
    ),
    45: Guard(
        "serve/decoder_process.py",
        "signal.setitimer(signal.ITIMER_PROF, cpu_seconds)",
        "pass",
        "serve/test_decoders.py::test_a_slow_photo_ends_its_decoder_alone",
        "the limit of processor time",
    ),
    46: Guard(
        "serve/requests.py",
        "        if count > most:",
        "        if False:",
        "serve/test_limits.py::test_json_that_is_refused",
        "counting the parts of JSON",
    ),
    47: Guard(
        "serve/connections.py",
        "self._late = self.loop.call_later(HEADER_SECONDS, self._too_late)",
        "pass",
        "serve/test_connections.py::test_half_sent_headers_time_out",
        "the limit of time for headers",
    ),
    48: Guard(
        "serve/middleware.py",
        'return origin is not None and not same_origin(origin, headers.get("host", ""), self.origins)',
        "return False",
        "serve/test_middleware.py::test_other_origins_cannot_post",
        "looking at Origin",
    ),
    49: Guard(
        "serve/run.py",
        "            signal.signal(number, signal.SIG_DFL)",
        "            signal.signal(number, signal.SIG_IGN)",
        "serve/test_stop.py::test_a_second_sigterm_ends_it_at_once",
        "leaving the second signal to the kernel",
    ),
    50: Guard(
        "data/pillow_reader.py",
        "plain = _without_metadata(file)",
        "plain = None",
        "data/test_readers.py::test_a_png_with_damaged_metadata_is_read",
        "reading again without the metadata",
    ),
    51: Guard(
        "data/tiff_reader.py",
        "planar=page.planarconfig == 2 and page.samplesperpixel > 1,",
        "planar=False,",
        "data/test_tiff.py::test_colours_of_every_layout",
        "bands that lie by themselves",
    ),
    52: Guard(
        "data/photo_statistics.py",
        "return bag_set.take(good).with_ranges(ranges)",
        "return bag_set.take(good)",
        "data/test_value_range.py::test_a_set_is_read_by_one_range",
        "the set's range for each of its photos",
    ),
    53: Guard(
        "data/sources/cells.py",
        "listed = listed_tags(text, where)",
        "listed = None",
        "data/sources/test_cells.py::test_what_is_printed_is_read",
        "reading printed lists as lists",
    ),
    54: Guard(
        "data/sources/names.py",
        'return text if text.isascii() else unicodedata.normalize("NFC", text)',
        "return text",
        "data/sources/test_names.py::test_unicode_forms",
        "composed Unicode",
    ),
    55: Guard(
        "data/sources/photo_files.py",
        "if prefix and (is_output(names) or",
        "if prefix and (",
        "data/sources/test_folder.py::test_outputs_and_leftovers_are_no_tags_and_no_photos",
        "knowing outputs by their files",
    ),
    56: Guard(
        "data/mask_pixels.py",
        "if numbers is not None:",
        "if False:",
        "data/test_label_map.py::test_the_order_of_the_label_map_numbers_the_colours",
        "colours by the label map",
    ),
}


class Failures:
    """A pytest plugin: the tests that failed, and why the first one did."""

    def __init__(self) -> None:
        self.count = self.ran = 0
        self.first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.ran += report.when == "call"
        if report.failed:
            self.count += 1
            crash = getattr(report.longrepr, "reprcrash", None)
            self.first = self.first or (crash.message.splitlines()[0] if crash else "failed")


def without(guard: Guard, tree: Path) -> str:
    """Run the guard's test in a copy of the tree without it, in a fork; what happened, "" where nothing failed."""
    for part in ("src", "tests", "fuzz"):
        shutil.copytree(ROOT / part, tree / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    path = tree / "src" / "milseg" / guard.file
    text = path.read_text(encoding="utf-8")
    if text.count(guard.old) != 1:
        raise SystemExit(
            f"{guard.file}: {guard.old!r} is there {text.count(guard.old)} times; mend this table"
        )
    path.write_text(text.replace(guard.old, guard.new), encoding="utf-8")
    told, tell = os.pipe()
    child = os.fork()
    if not child:
        answer = "!the run itself broke"
        try:
            os.close(told)
            log = os.open(tree / "log", os.O_WRONLY | os.O_CREAT)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(tree)
            # Before whatever else is installed; for processes of the tests too.
            sys.path[:0] = [str(tree / "src"), str(tree)]
            os.environ["PYTHONPATH"] = str(tree / "src")
            failures = Failures()
            words = [f"tests/{guard.test}", "-q", "-p", "no:cacheprovider"]
            pytest.main(words, plugins=[failures])
            import milseg

            assert Path(milseg.__file__).is_relative_to(tree), milseg.__file__
            answer = f"{failures.count} of {failures.ran}: {failures.first}" if failures.count else ""
            answer = answer if failures.ran else "!no test ran"
        finally:
            os.write(tell, answer.encode(errors="replace")[:4000])
            os._exit(0)
    os.close(tell)
    with os.fdopen(told, "rb") as pipe:
        found = pipe.read().decode(errors="replace")
    os.waitpid(child, 0)
    if found.startswith("!"):
        print(
            f"{guard.test}: {found[1:]}\n{(tree / 'log').read_text(errors='replace')[-3000:]}",
            file=sys.stderr,
        )
        return ""
    return found


def main(numbers: list[int]) -> int:
    assert {"milseg"}.isdisjoint(sys.modules)
    torch.set_num_threads(1)
    _ = matplotlib.pyplot, skimage.segmentation, sklearn.datasets, torchvision
    unnoticed = 0
    print("| Case | Taken out | Where | Test that fails | How |\n|---:|---|---|---|---|")
    for number in numbers or GUARDS:
        guard = GUARDS[number]
        with tempfile.TemporaryDirectory(prefix="milseg-guards-") as folder:
            os.chmod(folder, 0o755)  # for tests that are somebody else for a while
            found = without(guard, Path(folder).resolve())
            found = found.replace(folder, "")
        unnoticed += not found
        shown = (found or "**nothing failed**").replace("|", "\\|")[:160]
        print(f"| {number} | {guard.words} | `{guard.file}` | `{guard.test}` | {shown} |", flush=True)
    print(f"\n{len(numbers or GUARDS) - unnoticed} guards taken out and noticed, {unnoticed} not")
    return int(bool(unnoticed))


if __name__ == "__main__":
    sys.exit(main([int(word) for word in sys.argv[1:]]))
