"""Which tests show which reliability case; docs/reliability.md says it in words, `make reliability` runs it.

A test is named by its file and function; one with parameters counts with all of them, or with the one in brackets.
"""

from __future__ import annotations

from typing import NamedTuple


class Case(NamedTuple):
    about: str
    tests: tuple[str, ...]


def case(about: str, *tests: str) -> Case:
    return Case(about, tuple(f"tests/{test}" for test in tests))


CASES: dict[int, Case] = {
    1: case(
        "resume in the middle of an epoch, bit for bit",
        "training/test_trainer.py::test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit",
        "training/test_trainer.py::test_resuming_with_dropout_draws_the_same_units",
        "training/test_run.py::test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been",
    ),
    2: case(
        "SIGKILL during a save, 50 times",
        "training/test_checkpoint.py::test_a_kill_during_a_save_leaves_a_checkpoint_that_loads[50]",
        "utils/test_files.py::test_a_killed_process_leaves_the_old_file_and_its_leftover_can_be_removed",
    ),
    3: case(
        "disk full",
        "reliability/test_disk.py::test_a_disk_that_fills_while_training",
        "reliability/test_disk.py::test_a_disk_that_fills_while_predicting",
        "utils/test_files.py::test_a_full_disk_is_one_message_and_the_old_file_stays",
        "inference/test_model_folder.py::test_a_file_that_cannot_be_written_whole_is_one_message_and_the_old_one_stays",
        "annotations/test_writer.py::test_a_full_disk_is_said_and_the_record_stays_whole",
    ),
    4: case(
        "read-only output folder, told before work starts",
        "reliability/test_disk.py::test_a_read_only_folder_is_told_before_work_starts",
        "utils/test_files.py::test_check_writable_names_the_reason",
    ),
    5: case(
        "SIGTERM and SIGUSR1 end after the step, in every process, and --resume goes on",
        "training/test_run.py::test_a_signal_in_a_run_stops_it_and_resume_goes_on",
        "distributed/test_collectives.py::test_a_signal_to_one_process_stops_all_at_the_same_step",
        "distributed/test_collectives.py::test_torchrun_stopped_in_a_round_and_resumed_is_bit_for_bit_the_same",
        "inference/test_merging.py::test_a_signal_ends_after_the_photo_in_hand_and_resume_goes_on",
    ),
    6: case(
        "NaN or infinite loss or weights are never saved",
        "training/test_trainer.py::test_a_loss_that_is_not_finite_stops_the_run_and_the_last_checkpoint_stays",
        "training/test_trainer.py::test_weights_that_are_not_finite_are_never_saved",
        "inference/test_model_folder.py::test_weights_that_are_not_finite_are_not_saved_and_the_old_ones_stay",
        "training/test_checkpoint.py::test_momentum_that_is_not_finite_is_not_saved",
    ),
    7: case(
        "half precision: losses in float32, finite",
        "rules/test_contract.py::test_half_precision_gives_a_finite_float32_loss",
        "training/test_trainer.py::test_other_precisions_compute_the_network_and_no_loss",
        "rules/test_contract.py::test_no_score_map_makes_it_infinite",
    ),
    8: case(
        "all void: a connected zero, an undefined score",
        "reliability/test_void.py::test_a_mask_of_void_alone_is_a_connected_zero",
        "reliability/test_void.py::test_a_batch_of_void_alone_teaches_nothing",
        "reliability/test_void.py::test_photos_of_void_alone_have_no_score",
        "rules/test_contract.py::test_a_bag_of_padding_is_a_connected_zero",
        "evaluation/test_evaluate.py::test_all_void_is_undefined_not_zero",
    ),
    9: case(
        "a class absent from the set is nan, its false positives score 0",
        "evaluation/test_evaluate.py::test_an_absent_class_is_nan_and_its_false_positives_score_0",
        "evaluation/test_evaluate.py::test_agrees_with_slow_loops",
    ),
    10: case(
        "empty tag list: a background-only bag, counted, as one likes",
        "test_bad_input.py::test_photos_without_a_tag",
        "data/sources/test_table.py::test_untagged_photos_as_one_likes",
    ),
    11: case(
        "unknown tag: file, line and nearest name; ignored when asked",
        "test_bad_input.py::test_an_unknown_tag",
        "data/sources/test_tag_file.py::test_unknown_tags",
        "data/sources/test_voc.py::test_unknown_tag_in_the_tag_file",
    ),
    12: case(
        "empty class folder keeps its number, with a warning",
        "test_bad_input.py::test_an_empty_folder_of_a_tag_keeps_its_place",
        "data/sources/test_folder.py::test_an_empty_folder_keeps_its_place",
    ),
    13: case(
        "CSV with byte order mark, semicolons, Latin-1, NUL",
        "test_bad_input.py::test_a_byte_order_mark_and_semicolons",
        "test_bad_input.py::test_tables_that_cannot_be_read",
        "data/sources/test_tag_file.py::test_delimiter_order_mark_line_ends_and_quotes",
    ),
    14: case(
        "photo cut short: named, left out up to a share, never rewritten",
        "test_bad_input.py::test_a_photo_that_cannot_be_read",
        "training/test_run.py::test_a_truncated_photo_is_named_and_left_out",
        "inference/test_prediction_run.py::test_a_broken_photo_is_named_and_the_others_go_on",
    ),
    15: case(
        "decompression bomb, refused before decoding",
        "data/test_image.py::test_a_bomb_is_refused_before_decoding",
        "inference/test_prediction_run.py::test_a_bomb_is_refused_before_it_is_decoded",
    ),
    16: case(
        "16-bit, CMYK, palette, LA, RGBA, 1-bit, animated: golden pixels",
        "data/test_image.py::test_16_bit_grey_is_scaled_not_clipped",
        "data/test_image.py::test_32_bit_and_float_grey",
        "data/test_image.py::test_cmyk",
        "data/test_image.py::test_palette",
        "data/test_image.py::test_transparency_goes_on_white",
        "data/test_image.py::test_one_bit_and_grey",
        "data/test_image.py::test_an_animation_shows_its_first_frame",
        "test_bad_input.py::test_odd_pixel_modes",
    ),
    17: case(
        "EXIF orientation 1 to 8: the mask fits the photo as it is shown",
        "data/test_image.py::test_exif_orientation",
        "test_bad_input.py::test_orientations",
        "inference/test_prediction_run.py::test_the_mask_stands_as_the_photo_is_shown",
    ),
    18: case(
        "10,000 malformed JPEGs to the server: memory flat, 422 each",
        "serve/test_overload.py::test_damaged_photos_cost_no_memory[10000]",
    ),
    19: case(
        "one stem in two folders is fine, with two extensions an error",
        "test_bad_input.py::test_one_stem_in_two_folders_is_fine_with_two_extensions_it_is_not",
        "inference/test_prediction_run.py::test_photos_that_would_share_a_mask_are_refused",
    ),
    20: case(
        "output folder in use: refused without --overwrite or --resume",
        "test_bad_input.py::test_an_output_folder_that_holds_files",
        "inference/test_prediction_run.py::test_a_folder_that_holds_files_is_refused",
        "training/test_run.py::test_a_folder_that_holds_files_is_refused",
    ),
    21: case(
        "malicious pickle as weights: refused, not run",
        "models/test_weights.py::test_code_in_a_pickle_is_not_run",
        "inference/test_model_folder.py::test_hostile_weights_are_refused_and_named",
    ),
    22: case(
        "hostile safetensors: one message, no large allocation",
        "reliability/test_hostile_files.py::test_hostile_safetensors_are_told_without_memory",
        "reliability/test_hostile_files.py::test_more_than_a_gigabyte_would_be_refused_there",
        "models/test_weights.py::test_lying_headers",
        "models/test_weights.py::test_truncated_at_any_length",
    ),
    23: case(
        "paths that lead out, in tar, CSV, XML lists, JSON, requests",
        "test_bad_input.py::test_paths_that_lead_out",
        "test_bad_input.py::test_a_list_of_voc_that_leads_out",
        "data/shards/test_read.py::test_names_that_lead_out_are_refused_by_name",
        "data/shards/test_read.py::test_links_and_devices_are_refused_by_name",
        "data/sources/test_label_studio.py::test_addresses_that_lead_out",
        "annotations/test_writer.py::test_names_that_could_leave_the_folder_are_refused",
        "annotations/test_cleanup.py::test_a_ledger_that_leads_elsewhere",
        "serve/test_api.py::test_no_path_of_a_request_is_opened",
    ),
    24: case(
        "XML entity bomb and external entity: forbidden",
        "data/sources/test_voc.py::test_bad_annotations",
        "data/sources/test_open.py::test_bad_annotations",
        "serve/test_label_studio_backend.py::test_configurations_that_are_refused",
    ),
    25: case(
        "upload over the limit: 413, no file left",
        "serve/test_middleware.py::TestTooLarge",
    ),
    26: case(
        "16 clients at once: own masks; a full line is 503",
        "serve/test_overload.py::test_16_clients_get_their_own_masks",
        "serve/test_overload.py::test_a_full_line_is_503_at_once",
        "serve/test_overload.py::test_photos_wait_for_the_worker_one_by_one",
    ),
    27: case(
        "out of memory: smaller pieces in training, tiles in prediction",
        "training/test_trainer.py::test_too_little_memory_halves_the_pieces_and_says_so_once",
        "inference/test_tiling.py::test_a_device_without_memory_gets_smaller_tiles",
        "inference/test_tiling.py::test_no_memory_at_all_is_told_and_other_errors_pass",
    ),
    28: case(
        "same seed twice: same weights and masks; workers draw different numbers",
        "training/test_trainer.py::test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others",
        "test_determinism.py::test_train_twice",
        "test_determinism.py::test_predict_twice",
        "test_determinism.py::test_reproduce_twice",
        "reliability/test_draws.py::test_bags_of_a_step_and_steps_draw_different_numbers",
        "reliability/test_draws.py::test_workers_that_share_a_batch_drop_different_units",
    ),
    29: case(
        "evaluation in N processes equals that of one",
        "reliability/test_evaluation_in_processes.py::test_evaluation_in_processes_equals_that_of_one",
        "evaluation/test_evaluate.py::test_merged_parts_equal_one_pass_and_the_pure_functions",
    ),
    30: case(
        "arithmetic of rules and CRF: equations, gradients, invariances, pydensecrf",
        "rules/test_contract.py::test_it_equals_the_slow_equation",
        "rules/test_contract.py::test_gradcheck_with_choices_and_other_bags_held_fixed",
        "rules/test_contract.py::test_padding_takes_no_part",
        "rules/test_contract.py::test_permuted_bags_have_permuted_losses",
        "rules/test_contract.py::test_permuted_places_change_nothing",
        "refine/test_crf.py::test_it_is_what_pydensecrf_said",
        "refine/test_permutohedral.py::test_it_is_the_slow_loop",
    ),
    31: case(
        "any size from 1x1 on, in training, prediction and exported files",
        "models/test_fcn.py::test_any_size",
        "models/test_fcn.py::test_any_size_vgg_paddings",
        "inference/test_segmenter.py::test_any_size_works",
        "export/test_write.py::test_the_graph_says_what_the_segmenter_says",
        "export/test_write.py::test_every_kind_of_network_at_any_size",
    ),
    32: case(
        "parsers of any bytes: only the documented error escapes",
        "data/sources/test_tag_file.py::test_only_the_documented_error_escapes",
        "data/sources/test_table.py::test_only_the_documented_error_escapes",
        "data/sources/test_coco.py::test_only_the_documented_error_escapes",
        "data/sources/test_label_studio.py::test_only_the_documented_error_escapes",
        "data/sources/test_open.py::test_only_the_documented_error_escapes",
        "reliability/test_fuzz_targets.py",
    ),
    33: case(
        "masks that mean nothing as a set are told before they count",
        "data/test_mask_checks.py::test_0_and_255_alone_are_no_background_and_void",
        "data/test_mask_checks.py::test_one_answer_everywhere_is_no_truth",
        "data/test_mask_checks.py::test_void_that_makes_the_score_mean_little_is_told",
        "data/test_mask_checks.py::test_values_without_a_name_are_counted_over_the_set",
        "data/test_mask_checks.py::test_smoothed_edges",
        "data/test_mask_checks.py::test_each_mask_with_a_palette_of_its_own",
        "data/test_mask_checks.py::test_colours_that_say_otherwise_than_the_numbers",
        "data/sources/test_evaluation_set.py::test_masks_of_another_size_are_told_before_anything_is_predicted",
        "data/sources/test_evaluation_set.py::test_tags_that_the_masks_contradict",
    ),
    34: case(
        "one command's settings reach every reader that another command asks",
        "config/test_options_are_read.py::test_every_field_of_every_command_is_read",
        "config/test_options_are_read.py::test_compare_scores_on_photos_read_as_those_it_learns_from",
        "experiments/test_compare.py::test_tags_elsewhere_are_read_for_the_photos_to_score_too",
        "experiments/test_compare.py::test_the_oracle_learns_from_the_masks_as_they_are_numbered",
    ),
    35: case(
        "nothing held out: no tag AP and no prior, told before training where something had to be chosen",
        "experiments/test_compare.py::test_nothing_held_out",
    ),
    36: case(
        "one bad photo ends no evaluation and no comparison",
        "data/sources/test_evaluation_set.py::test_photos_that_cannot_be_read_are_left_out_and_counted",
        "data/sources/test_evaluation_set.py::test_a_damaged_true_mask_is_left_out_and_named",
        "experiments/test_compare.py::test_one_bad_photo_ends_no_comparison",
    ),
    37: case(
        "values of a model folder of wrong type, out of range or not finite: one message, at once",
        "inference/test_model_folder.py::test_values_of_the_settings_that_make_no_sense",
        "inference/test_model_folder.py::test_names_of_classes_that_make_no_sense",
        "inference/test_model_folder.py::test_weights_that_make_no_sense",
    ),
    38: case(
        "ONNX files that milseg did not write: refused before they are parsed or run",
        "inference/test_onnx_network.py::test_graphs_that_milseg_does_not_write",
        "inference/test_onnx_network.py::test_files_are_measured_before_they_are_parsed",
        "inference/test_onnx_network.py::test_values_of_the_metadata_that_make_no_sense",
    ),
    39: case(
        "shards without end: patterns, manifests, servers that never stop or send a byte a second",
        "data/shards/test_read.py::test_patterns_that_stand_for_too_many_shards",
        "data/shards/test_read.py::test_a_manifest_that_makes_no_sense",
        "data/shards/test_read.py::test_a_manifest_is_measured_before_it_is_read",
        "data/shards/test_read.py::test_servers_without_end",
    ),
    40: case(
        "caches that cannot be written, addresses of unknown kinds: one message",
        "data/shards/test_read.py::test_a_cache_that_cannot_be_written_is_named",
        "data/shards/test_read.py::test_a_user_without_a_home",
        "data/shards/test_read.py::test_addresses_of_unknown_kinds",
        "inference/test_hub.py::test_addresses_of_unknown_kinds",
    ),
    41: case(
        "a console that is not UTF-8: what it can print, and no traceback",
        "utils/test_console.py::test_a_console_that_is_not_utf8_prints_what_it_can",
        "utils/test_console.py::test_json_on_such_a_console_is_whole",
    ),
    42: case(
        "mistyped names and impossible numbers: told before any photo is read",
        "test_cli.py::test_names_are_checked_before_anything_is_read",
        "test_cli.py::test_numbers_are_checked_before_anything_is_read",
    ),
    43: case(
        "a time budget of next to nothing: one step, and what to expect",
        "training/test_run.py::test_a_budget_of_next_to_nothing_trains_a_step_and_says_what_to_expect",
        "training/test_run.py::test_a_time_budget_sets_the_steps",
    ),
    44: case(
        "masks that show nothing or lack a given tag: first in the table, however sure",
        "inference/test_prediction_run.py::test_masks_that_are_surely_wrong_come_before_the_uncertain_ones",
    ),
    45: case(
        "photos made to be slow: their decoder is ended, nothing else",
        "serve/test_decoders.py",
    ),
    46: case(
        "requests of any content: bounded time and memory, others answered meanwhile",
        "serve/test_limits.py",
    ),
    47: case(
        "connections that are slow, many, or take nothing; a log that nobody forges",
        "serve/test_connections.py",
    ),
    48: case(
        "other origins, other names, tokens that cannot be sent",
        "serve/test_middleware.py::test_other_origins_cannot_post",
        "serve/test_middleware.py::test_another_name_is_refused",
        "serve/test_stop.py::test_the_token_of_the_server",
        "serve/test_stop.py::test_others_need_a_token_unless_said",
    ),
    49: case(
        "a second SIGTERM ends the server at once",
        "serve/test_stop.py::test_a_second_sigterm_ends_it_at_once",
    ),
    50: case(
        "whatever one photo raises is that photo's message; odd metadata is none",
        "data/test_readers.py::test_whatever_a_reader_raises_is_the_photos_message",
        "data/test_readers.py::test_too_little_memory_is_the_photos_message",
        "data/test_readers.py::test_a_sound_photo_with_odd_metadata_is_a_sound_photo",
        "data/test_readers.py::test_metadata_that_stops_pillow_is_left_out",
        "data/test_readers.py::test_a_png_with_damaged_metadata_is_read",
        "data/test_readers.py::test_what_is_no_photo_is_named",
    ),
    51: case(
        "TIFF of every layout, to the number",
        "data/test_tiff.py::test_grey_of_every_type",
        "data/test_tiff.py::test_colours_of_every_layout",
        "data/test_tiff.py::test_predictors",
    ),
    52: case(
        "one range of values for a set; NaN, infinity and no data decide nothing",
        "data/test_value_range.py::test_values_that_fill_a_depth_get_the_whole",
        "data/test_value_range.py::test_others_get_the_span_that_they_take",
        "data/test_value_range.py::test_nan_infinity_and_no_data_decide_nothing_and_become_black",
        "data/test_value_range.py::test_a_set_is_read_by_one_range",
    ),
    53: case(
        "a cell of tags means what a person means, decided by its whole column",
        "data/sources/test_cells.py::test_one_separator_for_the_column",
        "data/sources/test_cells.py::test_lists_as_programs_print_them",
        "data/sources/test_cells.py::test_cells_without_a_tag",
        "data/sources/test_cells.py::test_what_is_printed_is_read",
        "data/sources/test_tag_file.py::test_the_same_as_a_spreadsheet_saves_it",
        "data/sources/test_table.py::test_crosses_and_other_flags",
    ),
    54: case(
        "names of photos in every form, among the listed photos alone; rows of one photo add up",
        "data/sources/test_names.py::test_ways_to_write_a_name",
        "data/sources/test_names.py::test_unicode_forms",
        "data/sources/test_names.py::test_nothing_but_a_listed_name_is_ever_found",
        "data/sources/test_names.py::test_why_a_photo_is_left_out",
        "data/sources/test_names.py::test_rows_of_one_photo_add_up_and_rows_of_two_do_not",
    ),
    55: case(
        "outputs and leftovers never become photos, classes or lists; untagged photos imply a background",
        "data/sources/test_folder.py::test_outputs_and_leftovers_are_no_tags_and_no_photos",
        "data/sources/test_folder.py::test_splits_beside_other_folders",
        "inference/test_prediction_run.py::test_outputs_and_leftovers_are_not_predicted",
        "data/sources/test_table.py::test_without_a_background",
    ),
    56: case(
        "exports of annotation tools, and colour masks with their label map, say the same as what was drawn",
        "data/sources/test_exports.py::test_the_same_tags_from_each",
        "data/sources/test_exports.py::test_exports_that_cannot_be_read",
        "data/sources/test_exports.py::test_only_the_documented_error_escapes",
        "data/test_label_map.py::test_the_order_of_the_label_map_numbers_the_colours",
        "data/test_label_map.py::test_what_predict_writes_for_cvat_is_read_back",
    ),
}
