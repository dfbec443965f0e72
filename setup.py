"""Build Helios from settings.ini, its one configuration."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).resolve().parent
config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
settings = config["DEFAULT"]


def requirements(extra: str) -> list[str]:
    return settings[f"{extra}_requirements"].split()


notebooks = requirements("notebooks")
extras = {name: requirements(name) for name in ("dask", "postgres", "sweeps", "gemini", "redis")}
extras["notebooks"] = notebooks
extras["dev"] = requirements("dev") + notebooks + extras["dask"] + extras["postgres"] + extras["sweeps"] + extras["gemini"] + extras["redis"]

setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=settings["author"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    keywords=settings["keywords"].split(),
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in range(11, 14)],
    python_requires=f">={settings['min_python']},<{settings['max_python']}",
    # The sample and the exploratory notebooks travel inside an installed package.
    packages=find_packages(include=["helios", "helios.*"]) + ["helios.sample_data", "helios.notebooks"],
    package_dir={"helios.sample_data": "data", "helios.notebooks": "nbs"},
    package_data={"helios.sample_data": ["*.csv"], "helios.notebooks": ["9*.ipynb"], "helios": ["*.html.j2", "web/dist/*", "web/dist/**/*"]},
    install_requires=settings["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": settings["console_scripts"].split()},
    zip_safe=False,
)
