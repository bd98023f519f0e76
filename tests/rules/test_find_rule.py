import pytest
import torch

from milseg.errors import UserError
from milseg.rules import RULES, find_rule
from tests.rules.cases import random_case, random_extras


def test_a_name_alone_is_the_row():
    for name, row in RULES.items():
        if not row.term:
            entry = find_rule(name)
            assert (entry.about, entry.limits) == (row.about, row.limits)
            assert entry.options == row.load().options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("maxx", "did you mean 'max'"),
        ("top-k(kk=5)", "unknown option of rule top-k 'kk'; did you mean 'k'"),
        ("max(k=5)", "rule max has no options; found k"),
        ("top-k(k=0)", "k is 0; expected 1e-06 or more"),
        ("rank-pooling(foreground=2)", "foreground is 2; expected 1e-06 to 1"),
        ("top-k(k=many)", "expected a number"),
        ("em-adapt(rounds=1.5)", "expected a whole number"),
        ("attention(gated=1)", "expected true or false"),
        ("attention(classes=4)", "unknown option of rule attention"),
        ("max+", "expected a name"),
        ("max+nothing", "unknown rule 'nothing'"),
        ("nowhere:f", "no module 'nowhere'"),
        ("not a module:f", "expected package.module:function"),
    ],
)
def test_mistakes_are_named(text, words):
    with pytest.raises(UserError, match=words):
        find_rule(text)


def test_every_option_of_every_rule_can_be_typed():
    scores, tags, valid = random_case(0, dtype=torch.float32)
    extras = random_extras(0, valid)
    for name, row in RULES.items():
        entry = row.load()
        settings = ", ".join(f"{option}={value}" for option, value in entry.options.items())
        typed = find_rule(f"{name}({settings})")
        expected = find_rule(name).build(4)(scores, tags, valid, **extras)
        torch.testing.assert_close(typed.build(4)(scores, tags, valid, **extras), expected)
        for option, value in entry.options.items():
            changed = not value if isinstance(value, bool) else value * 0.5 if isinstance(value, float) else 1
            assert find_rule(f"{name}({option}={changed})").options.get(option, changed) == changed


def test_ones_own_rule_by_its_import(tmp_path, monkeypatch):
    (tmp_path / "my_rules.py").write_text(
        "def mine(scores, tags, valid, **k):\n    return scores.sum((1, 2, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_rule("my_rules:mine").rule(torch.ones(2, 1, 2, 2), None, None).tolist() == [4, 4]
    with pytest.raises(UserError, match="no function 'other'"):
        find_rule("my_rules:other")
    scores, tags, valid = random_case(1)
    both = find_rule("max+my_rules:mine").rule(scores, tags, valid)
    torch.testing.assert_close(both, RULES["max"].load().rule(scores, tags, valid) + scores.sum((1, 2, 3)))
