"""The tour: the real scripts, one after the other, on smaller numbers still."""
from nanoverify.support.files import read_json
from nanoverify.tools import tour

LESS = {"data": "--count 12", "sft": "--test-count 4 --epochs 1",
        "rl": "--test-count 4 --steps 1 --prompts 2 --samples 2"}


def test_tour(elsewhere, monkeypatch, capsys):
    """Bug: a stage does not take what the stage before it left; flags of the tour are gone; a
    second tour is refused; nothing says that this is too little to learn from."""
    stages = [(title, main, folder, f"{flags} {LESS[folder]} --max-new-tokens 150 --device cpu")
              for title, main, folder, flags in tour.STAGES]
    monkeypatch.setattr(tour, "STAGES", stages)
    for _ in range(2):
        tour.main([])
        shown = capsys.readouterr().out
        assert shown.index("Stage 0") < shown.index("Stage 1") < shown.index("Stage 2")
        assert "too little to learn much" in shown and "ask --model out/tour/rl" in shown
    assert list(read_json("out/tour/rl/evaluation.json")["columns"]) == ["base", "SFT", "RL"]
    page = (elsewhere / "out/tour/report.html").read_text("utf-8")
    assert all(f"out/tour/{folder}" in page for folder in LESS)
    arguments = read_json("out/tour/rl/arguments.json")
    assert arguments["model"] == "out/tour/sft" and arguments["beta"] == 0.05
