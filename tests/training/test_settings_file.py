from __future__ import annotations

from pathlib import Path

import pytest

from chestct.errors import TrainingError
from chestct.training.settings import _setting_names, read_settings, settings_as_yaml

SHORT = """
labels: [COVID-19, normal]
network: {name: maseres}
recipe: {name: maseres_paper}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    return path


def test_what_is_left_out_takes_its_default_and_is_written_out(file: Path, tmp_path: Path) -> None:
    settings = read_settings(file)
    assert settings.training.epochs == 20
    whole = tmp_path / "whole.yaml"
    whole.write_text(settings_as_yaml(settings))
    assert "early_stopping_epochs: null" in whole.read_text()
    assert read_settings(whole) == settings


def test_overrides_win_over_the_file_and_are_read_as_yaml(file: Path) -> None:
    settings = read_settings(
        file,
        [
            "training.epochs=5",
            "training.learning_rate=1e-4",
            "labels=[CAP, normal]",
            "data.cache=",
            "network.settings.dropout=0.5",
        ],
    )
    assert settings.training.epochs == 5
    assert settings.training.learning_rate == 1e-4
    assert settings.labels == ("CAP", "normal")
    assert settings.data.cache is None
    assert settings.network.settings == {"dropout": 0.5}


ENTRIES = """
labels:
- {name: clear, negative: true, values: [no, 0]}
- {name: emphysema, wording: Emphysema, values: [yes, 1],
   code: {value: 87, scheme: SCT, meaning: E}}
network: {name: maseres}
recipe: {name: maseres_paper}
"""


def test_classes_with_all_that_is_said_of_them_come_back_as_they_were(tmp_path: Path) -> None:
    path, whole = tmp_path / "entries.yaml", tmp_path / "whole.yaml"
    path.write_text(ENTRIES)
    settings = read_settings(path)
    assert settings.labels == ("clear", "emphysema")
    assert settings.label_set.negative == "clear"
    assert settings.label_set.spellings == {
        "clear": "clear",
        "emphysema": "emphysema",
        "no": "clear",
        "false": "clear",
        "0": "clear",
        "yes": "emphysema",
        "true": "emphysema",
        "1": "emphysema",
    }
    assert settings.label_set.of("emphysema").code == ("87", "SCT", "E")
    whole.write_text(settings_as_yaml(settings))
    assert read_settings(whole) == settings


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("wording:", "words:", "labels, entry 2: there is no field 'words'. Known: name, wording"),
        ("wording: E", "negative: true, wording: E", "only one class can be the negative one"),
        ("[yes, 1]", "[yes, 0]", "the value '0' stands for two classes"),
        ("scheme: SCT, ", "", "labels, entry 2, 'code.scheme': Field required"),
        ("wording: E", "color: red, wording: E", "the color of 'emphysema' must be like"),
        ("name: clear, ", "", "'labels.0' is ''"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_by_its_number(
    before: str, after: str, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "entries.yaml"
    path.write_text(ENTRIES.replace(before, after, 1))
    with pytest.raises(TrainingError) as refusal:
        read_settings(path)
    assert words in str(refusal.value)


def test_an_empty_section_can_be_overridden(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text(SHORT + "training:\n")
    assert read_settings(path, ["training.epochs=7"]).training.epochs == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.epoch=5", "no setting 'training.epoch'. Did you mean 'training.epochs'"),
        ("epochs=5", "no setting 'epochs'. Did you mean 'training.epochs'"),
        ("trainig.epochs=5", "no setting 'trainig'. Did you mean 'training'"),
        ("training.qqqqqq=5", "no setting 'training.qqqqqq'. Known: training.epochs"),
        ("training.epochs=0", "'training.epochs' is 0: Input should be greater than or equal to 1"),
        ("training.epochs=many", "'training.epochs' is 'many'"),
        ("training.optimizer=adamm", "Did you mean 'adam'"),
        ("labels=[normal]", "'labels' is"),
        ("training=5", "'training' is 5"),
        ("network.name.x=5", "the setting 'name' has no parts"),
        ("training.epochs", "Write it as NAME=VALUE"),
        ("=3", "Write it as NAME=VALUE"),
        ("training.epochs=[", "not well-formed YAML"),
    ],
)
def test_a_wrong_setting_is_named_by_its_path(file: Path, override: str, words: str) -> None:
    with pytest.raises(TrainingError) as error:
        read_settings(file, [override])
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"labels: [a, b]\nrecipe: {name: x}\n", "the setting 'network' is missing"),
        (b"just words", "holds no settings"),
        (b"a: [", "not well-formed YAML"),
        (b"\xff\xfe\x00", "not text in UTF-8"),
        (b"a: " + b"x" * 2**21, "larger than"),
        (b"!!python/object/apply:os.system ['true']", "not well-formed YAML"),
    ],
    ids=["missing", "words", "broken", "binary", "large", "code"],
)
def test_a_file_that_is_no_settings_file_is_refused(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=words):
        read_settings(path)


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"gone\.yaml cannot be read"):
        read_settings(tmp_path / "gone.yaml")


def test_every_setting_is_described_in_the_docs() -> None:
    names = _setting_names()
    assert {"labels", "network.name", "training.learning_rate", "data.cache"} <= set(names)
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text("utf-8")
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [1, 2]\nb: &b [*a, *a]\nc: [*b, *b]\n", "repeated by an alias"),
        ("a: " + "[" * 100_000, "nested too deep"),
    ],
)
def test_yaml_that_stands_for_more_than_it_says_is_refused(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=words):
        read_settings(path)
