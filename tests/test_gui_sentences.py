"""What a run tells, in the language of the window: nothing is forgotten, nothing is left over, nothing breaks."""

import errno
import json
import os

import numpy as np
import pytest

from sentences import ROOT, sentences_in
from zemosaic_config import config_path
from zemosaic_gui_sentences import JOINTS, pieces, told
from zemosaic_gui_text import ENGLISH, languages, sentences, sentences_of, set_language

#: What the window does not show, or says in its own words.
UNSEEN = ("zemosaic_gui_", "zemosaic_truth")
SEEN = {"zemosaic_gui_pyramid"}
UNSEEN_MODULES = {
    "zemosaic_cli",
    "zemosaic_demo",
    "zemosaic_doctor",
    "zemosaic_drawings",
    "zemosaic_interpreter",
    "zemosaic_report_page",
    "zemosaic_stack_cuda",
    "zemosaic_synthetic",
    "zemosaic_terminal",
}
#: Functions, names and texts of a module that only files, logs, other programs or programmers see.
UNTOLD = {
    "zemosaic_astrometry": {"_config_in", "_identity"},
    "zemosaic_backend": {"_TRIAL"},
    "zemosaic_config": {
        "Option()",
        "Input and output",
        "Plate solving",
        "_LABELS",
        "_PAGE_HEAD",
        "_table_row",
        "parse_assignment",
        "reference_page",
    },
    "zemosaic_fits_io": {"No SIMPLE card", "Empty or corrupt", "END card"},
    "zemosaic_fits_products": {"_stream_header"},
    "zemosaic_coadd": {"master tile"},
    "zemosaic_groups": {"_kind", "_reason"},
    "zemosaic_plan": {"{x1} line {x2}"},
    "zemosaic_sky_systems": {"not given"},
    "zemosaic_interpreter": {"command_to_call"},
    "zemosaic_master_tiles": {"tile_header"},
    "zemosaic_outputs": {
        "_CONTENTS",
        "_add_common_text",
        "_add_times",
        "canvas_header",
        "product_header",
        "tile_hdus",
        "write_residual",
        "write_viewer",
    },
    "zemosaic_report": {"_content", "_facts", "_maps", "_memory", "_orientation", "_parts", "_residual_map"}
    | {"_duration", "_span", "write_page"},
    "zemosaic_runbook": {"_LOG_FORMAT"},
    "zemosaic_star_placing": {"_place", "a provisional place"},
    "zemosaic_worker": {"Fatal Python error", "exit()"},
}
#: Words of a run that are too short to be told from names of things; they stand within sentences.
SHORT = {
    "Classic",
    "arbitrarily",
    "cancelled",
    "complete",
    "default",
    "environment",
    "error",
    "file",
    "gains",
    "gains and levels",
    "levels",
    "master tiles",
    "number",
    "text",
    "tile",
    "tiles",
    "window",
}
#: What the system says of files.
ERRORS = (
    "EACCES EBUSY EEXIST EFBIG EINTR EINVAL EIO EISDIR EMFILE ENAMETOOLONG ENODEV ENOENT ENOMEM ENOSPC ENOTDIR "
)
ERRORS += "ENOTEMPTY EPERM EROFS ESTALE ETIMEDOUT EDQUOT ENFILE"


SYSTEM = {os.strerror(getattr(errno, name)) for name in ERRORS.split() if hasattr(errno, name)}
TRANSLATED = sorted(set(languages()) - {ENGLISH})


@pytest.fixture(autouse=True)
def english_again():
    yield
    set_language(ENGLISH)


def told_in(module):
    return sentences_in(module, frozenset(UNTOLD.get(module, ())))


def said():
    """The sentences of a run, with the place of one that says them."""
    found = {}
    for module in sorted(path.stem for path in ROOT.glob("*.py")):
        if module in SEEN or (not module.startswith(UNSEEN) and module not in UNSEEN_MODULES):
            for text, line in told_in(module)[0].items():
                found.setdefault(text, f"{module}.py:{line}")
    return found


SAID = said()


def shape(template):
    """A template with its placeholders numbered."""
    first, *rest = (text.replace("{", "{{").replace("}", "}}") for text in pieces(template)[0])
    return first + "".join(f"{{x{k}}}{part}" for k, part in enumerate(rest, start=1))


def filled(template):
    """A template with words in its gaps that no language knows."""
    return template.format(**{name: name.upper() + "9" for name in pieces(template)[1]})


# ---- nothing is forgotten --------------------------------------------------------------------------------


def test_the_source_is_read_as_it_should_be(tmp_path, monkeypatch):
    source = """
"A docstring of words."
KNOWN = "a constant of words"
def f(n, name, reason):
    "Another docstring."
    logger.warning("only the log sees this %s", name)
    if n: raise ValueError("only programmers see this")
    if not name: raise FrameError(f"{name} of {n} frame{'s' if n > 1 else ''}: {reason or 'no reason at all'}")
    if reason: raise PlanError((f"line {n}: " if n else "no line: ") + reason)
    return untold("words for a file"), "one_key", "Word", f"{n:g} % of it", {"{x}": "braces {in} a text"}
"""
    (tmp_path / "module.py").write_text(source, encoding="utf-8")
    monkeypatch.setattr("sentences.ROOT", tmp_path)
    found, used = sentences_in("module", frozenset({"untold()", "absent"}))
    assert set(found) == {
        "a constant of words",
        "{x1} of {x2} frame: {x3}",
        "{x1} of {x2} frames: {x3}",
        "no reason at all",
        "line {x1}: {x2}",
        "no line: {x1}",
        "{x1} % of it",
        "braces {{in}} a text",
    }
    assert used == {"untold()"}


def test_what_is_untold_is_there():
    for module, names in UNTOLD.items():
        assert told_in(module)[1] == names, module


def test_the_modules_that_are_not_read_are_there():
    assert all((ROOT / f"{module}.py").is_file() for module in UNSEEN_MODULES)
    assert len(SAID) > 300


@pytest.mark.parametrize("code", TRANSLATED)
def test_every_sentence_is_translated(code):
    """The failure lists what a language lacks, to be pasted into its ``sentences`` and given names and words."""
    known = {shape(template) for template in sentences_of(code)}
    missing = {text: place for text, place in SAID.items() if text not in known}
    assert not missing, "\n" + "\n".join(f"{json.dumps(t, ensure_ascii=False)}: {p}" for t, p in missing.items())
    assert SHORT - known == set()


@pytest.mark.parametrize("code", TRANSLATED)
def test_no_sentence_is_left_over(code):
    left = {template for template in sentences_of(code) if shape(template) not in SAID}
    assert left - SHORT - SYSTEM - set(JOINTS) == set()


@pytest.mark.parametrize("code", TRANSLATED)
def test_every_sentence_is_found_and_comes_out_in_its_own_words(code):
    set_language(code)
    for english, text in sentences().items():
        assert sorted(pieces(text)[1]) == sorted(pieces(english)[1]), english
        assert told(filled(english)) == filled(text), english
    same = {english for english, text in sentences().items() if english == text}
    assert same <= {"gains"}


@pytest.mark.parametrize("code", TRANSLATED)
def test_gaps_never_touch_in_the_source(code):
    assert [text for text in SAID if "}{x" in text] == []


# ---- how it is told --------------------------------------------------------------------------------------


def test_english_stays_as_it_is():
    assert told("it is not a FITS file") == "it is not a FITS file"
    assert sentences() == {}


TOLD = {
    "": "",
    "nothing that anybody has ever said": "nothing that anybody has ever said",
    "/a/b.fit cannot be read: Permission denied": "/a/b.fit ne peut pas être lu : accès refusé",
    "no usable frame in /a: x.fit: the file is empty; y.fit: no celestial WCS": (
        "aucune image utilisable dans /a : x.fit : le fichier est vide ; y.fit : pas de WCS céleste"
    ),
    "/p/plan.csv has no usable row: line 3: file not found: c.fit; and 2 more": (
        "/p/plan.csv n’a aucune ligne utilisable : ligne 3 : fichier introuvable : c.fit ; et 2 de plus"
    ),
    "left out as suggested: its stars are 2.1 times as wide as usual; clouds: 40 % of the light lost": (
        "écartée comme proposé : ses étoiles sont 2.1 fois plus larges que d’habitude ; "
        "nuages : 40 % de la lumière perdue"
    ),
    "left out /x.fit: the file is truncated: it has 3 of 9 bytes": (
        "écartée, /x.fit : le fichier est tronqué : il a 3 octets sur 9"
    ),
    "left out /x.fit: the WCS is damaged: CD1_1 is missing": "écartée, /x.fit : le WCS est abîmé : CD1_1 manque",
    "no celestial WCS in the file or beside it; ASTAP: No solution found. (exit status 1)": (
        "pas de WCS céleste dans le fichier ni à côté ; ASTAP : No solution found. (code de sortie 1)"
    ),
    "no celestial WCS in the file or beside it; ASTAP: stopped after 60 s without a solution": (
        "pas de WCS céleste dans le fichier ni à côté ; ASTAP : arrêté après 60 s sans solution"
    ),
    "flat of an unnamed instrument (1080 x 1920 px) from 1 frame: +1.0 / +2.0 % at the corners": (
        "vignettage, un instrument sans nom (1080 × 1920 px), d’après 1 image : +1.0 / +2.0 % dans les coins"
    ),
    "the process of the run was ended by SIGKILL (log: /o/z.log); often memory ran out: try a smaller "
    "grid_workers or grid_chunk_ram_mb\nMemoryError: 12; 13": (
        "le processus du calcul a été arrêté par SIGKILL (journal : /o/z.log) ; souvent, la mémoire a manqué : "
        "essayez moins de processus (grid_workers) ou moins de mémoire par processus (grid_chunk_ram_mb)\n"
        "MemoryError: 12; 13"
    ),
    "the process of the run ended before its time (exit status 3) (log: /o/z.log); its last words say why": (
        "le processus du calcul s’est terminé trop tôt (code de sortie 3) (journal : /o/z.log) ; "
        "ses derniers mots disent pourquoi"
    ),
    "2 frames have no place on the sky yet; the run places them by the stars that they share with others, where "
    "it can; no plate solver is there (plate solving is turned off; its own words). HOW": (
        "2 images n’ont pas encore de place sur le ciel ; le calcul les place par les étoiles qu’elles partagent "
        "avec d’autres, là où c’est possible ; il n’y a pas de solveur astrométrique (la résolution astrométrique "
        "est désactivée ; its own words). HOW"
    ),
    "3 frame(s) are to be solved and no plate solver is there (solver_method is astap, which is not there). HOW": (
        "3 image(s) sont à résoudre et il n’y a pas de solveur astrométrique (solver_method vaut astap, qui n’est "
        "pas là). HOW"
    ),
    "/o/m.fits cannot be written: the disk is full: more than 12 bytes needed, 3.0 GB free": (
        "/o/m.fits ne peut pas être écrit : le disque est plein : il faut plus de 12 octets, 3.0 GB libres"
    ),
    "canvas of 900 x 800 px, 12 master tiles": "mosaïque de 900 × 800 px, en 12 tuiles maîtresses",
    "canvas of 900 x 800 px, 1 tile": "mosaïque de 900 × 800 px, en 1 tuile",
    "Grid mode: grid_mode_enabled is on (file)": "Mode grille : grid_mode_enabled est activé (fichier)",
    "Grid mode: grid_mode_enabled is on (window)": "Mode grille : grid_mode_enabled est activé (fenêtre)",
    "configuration file: grid_workers = 'x' is not allowed, expected whole number (older names: workers)": (
        "fichier de configuration : grid_workers = 'x' n’est pas permis, attendu : un nombre entier "
        "(anciens noms : workers)"
    ),
}


@pytest.mark.parametrize("text", TOLD)
def test_french_is_what_a_user_reads(text):
    set_language("fr")
    assert told(text) == TOLD[text]


def test_a_user_language_may_say_some_sentences_and_replace_some():
    folder = config_path().parent / "languages"
    folder.mkdir(parents=True)
    some = {"{key} is not a number": "{key} ne estas nombro", "the file is empty": "la dosiero malplenas"}
    (folder / "eo.json").write_text(json.dumps({"sentences": some}), encoding="utf-8")
    (folder / "fr.json").write_text(json.dumps({"sentences": {"the file is empty": "rien"}}), encoding="utf-8")
    set_language("eo")
    assert told("a: 7 is not a number; the file is empty") == "a: 7 ne estas nombro; la dosiero malplenas"
    assert told("it is not a FITS file") == "it is not a FITS file"
    set_language("fr")
    assert told("the file is empty") == "rien"
    assert told("it is not a FITS file") == "ce n’est pas un fichier FITS"


SLIPS = {
    "another placeholder": ("{n} frames", "{m} images"),
    "one placeholder less": ("{n} frames", "images"),
    "a brace too many": ("{n} frames", "{n} images }"),
    "no names": ("{} frames", "{} images"),
    "an attribute": ("{n} frames", "{n.__class__} images"),
    "a form": ("{n} frames", "{n:d} images"),
    "no text": ("{n} frames", ["images"]),
    "one name twice": ("{n} of {n} frames", "{n} images"),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_a_slip_of_a_translator_costs_one_sentence(slip, caplog):
    folder = config_path().parent / "languages"
    folder.mkdir(parents=True)
    content = {"sentences": dict([SLIPS[slip]]) | {"the file is empty": "vide"}}
    (folder / "xx.json").write_text(json.dumps(content), encoding="utf-8")
    set_language("xx")
    assert told("a: 5 frames; the file is empty") == "a: 5 frames; vide"
    assert slip == "no text" or "cannot be used" in caplog.text


@pytest.mark.parametrize("content", [{"sentences": ["no object"]}, {"sentences": None}, []])
def test_a_language_without_sentences_leaves_them_as_they_are(content):
    folder = config_path().parent / "languages"
    folder.mkdir(parents=True)
    (folder / "xx.json").write_text(json.dumps(content), encoding="utf-8")
    set_language("xx")
    assert told("the file is empty") == "the file is empty"


def test_no_text_is_too_strange_to_be_told():
    set_language("fr")
    random = np.random.default_rng(5)
    bits = [
        *sentences(),
        *map(filled, sentences()),
        "; ",
        ": ",
        "{",
        "}",
        "(",
        ")",
        "\n",
        "\0",
        "é",
        " ",
        "%s",
        "",
    ]
    for n in random.integers(1, 9, 2000):
        text = "".join(bits[k] for k in random.integers(0, len(bits), n))
        assert isinstance(told(text), str)
    for text in ("; " * 3000, ": " * 3000, "(" * 5000, "the file is empty; " * 2000, "a: " * 1000 + "x"):
        assert isinstance(told(text), str)
