"""Package metadata. The tools' settings are in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

REDIS = ["redis>=7.0.1"]
STRIPE = ["stripe>=14.0.0", "requests>=2.32.2"]
EXAMPLE = [*REDIS, *STRIPE, "flask-sqlalchemy>=3.1.1", "sqlalchemy>=2.0.30"]

setup(
    name="flask-idempotency",
    version="0.1.0",
    description="Idempotency keys for Flask: the work is done once, and every retry gets the same answer.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    packages=find_packages(include=["flask_idempotent", "flask_idempotent.*"]),
    package_data={"flask_idempotent": ["py.typed", "static/*.js"]},
    python_requires=">=3.11",
    install_requires=["flask>=3.1.0", "flask-caching>=2.5.0", "cachelib>=0.17.0", "werkzeug>=3.1.0"],
    extras_require={
        "redis": REDIS,
        "stripe": STRIPE,
        "example": EXAMPLE,
        "test": [
            *EXAMPLE,
            "pytest>=9.0",
            "pytest-flask>=1.3",
            "hypothesis>=6.150",
            "http-sfv>=0.9.9",
            "playwright>=1.60",
            "schemathesis>=4.30",
            "apispec>=6.10",
            "flask-login>=0.6.3",
            "trustme>=1.2",
            "gunicorn>=27.0",
            "gevent>=26.9",
            "ruff>=0.17,<0.18",
            "mypy>=2.4,<2.5",
            "flask[async]",
        ],
        "bench": [*REDIS, "gunicorn>=23"],
    },
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Flask",
        "Intended Audience :: Developers",
        "Programming Language :: Python :: 3.11",
        "Topic :: Internet :: WWW/HTTP :: WSGI",
        "Typing :: Typed",
    ],
)
