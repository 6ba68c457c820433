"The package, as settings.ini describes it; the version is in macular/__init__.py"
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
settings = ConfigParser(interpolation=None)
settings.read(here / "settings.ini", encoding="utf-8")
ini, lib = settings["DEFAULT"], settings["DEFAULT"]["lib_path"]
extras = {extra: ini[f"{extra}_requirements"].split() for extra in ("dev", "docs", "zh", "trees", "cluster")}

setup(
    name=ini["lib_name"], description=ini["description"], author=ini["author"], license_expression=ini["license"],
    version=re.search(r'^__version__ = "(.+)"', (here / lib / "__init__.py").read_text("utf-8"), re.M)[1],
    long_description=(here / "README.md").read_text("utf-8"), long_description_content_type="text/markdown",
    keywords=ini["keywords"].split(), python_requires=f">={ini['min_python']}",
    classifiers=[f"Development Status :: {ini['status']}", f"Intended Audience :: {ini['audience']}"],
    packages=find_packages(include=[lib, f"{lib}.*"]), package_data={lib: ["assets/**"]}, include_package_data=False,
    install_requires=ini["requirements"].split(),
    extras_require=extras | {"dev": extras["dev"] + extras["docs"]},
    entry_points={"console_scripts": ["macular = macular.cli:main", "nbdev_test = nbdev.test:nbdev_test"],
                  "nbdev": [f"{lib} = {lib}._modidx:d"]})
