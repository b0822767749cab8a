"""README's figures are those of the results files."""

from pathlib import Path

from scripts.readme_results import results_markdown, with_all_tables


ROOT = Path(__file__).parents[2]


def test_readme_shows_the_results_files():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(results_markdown(ROOT / "results").splitlines()) > 2, "no results files"
    assert with_all_tables(readme, ROOT / "results") == readme, "run python scripts/readme_results.py"
