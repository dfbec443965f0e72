"""Helios, a laboratory for lottery draws. Public names load on first use, so that `import helios` stays light."""

from importlib import import_module

__version__ = "0.1.0"

_HOME_OF = {
    "game": ["Era", "Game", "POWERBALL"],
    "drum": ["Drum"],
    "draws": ["Bias", "DrawError", "era_draws", "load_draws", "read_draws", "simulate", "write_draws"],
    "subsets": ["entropy", "inclusion_probs", "log_esp", "log_prob", "sample", "top_subsets"],
    "scoring": ["Forecast", "calibration", "e_process", "fit_shrinkage", "mean_interval"],
    "monitor": ["Monitor"],
    "record": ["watch"],
    "fairness": ["audit", "examine"],
    "evaluation": ["Evaluation", "evaluate"],
    "value": ["sales", "ticket_value"],
    "net": ["PowerballNet"],
    "fitting": ["PRESETS", "TrainError", "TrainingConfig"],
    "database": ["StoreWarning"],
    "memory_store": ["FencedError", "MemoryStore", "StoreError"],
    "own_store": ["default_store"],
    "mixtures": ["Mixture", "mixture"],
    "archive": ["ArchiveError", "Registry", "RegistryError"],
    "executor": ["get_executor"],
    "jobs": ["JobError", "Jobs"],
    "job_context": ["JobContext", "Stopped"],
    "trainer": ["ModelTrainer", "TrainedModel", "submit_training"],
    "sweeps": ["sweep"],
    "ensembles": ["Ensemble", "register_ensemble"],
    "forecasters": ["FORECASTERS", "Forecaster", "Frequency", "Repeats", "Steps", "StructureMixture", "forecaster_named", "walk"],
    "analytics": ["CrossModelAnalytics"],
    "ledger": ["Ledger"],
    "metacognition": ["MetacognitiveEngine"],
    "autonomy": ["DecisionEngine"],
    "challengers": ["DecisionError"],
    "goals": ["Goals"],
    "server": ["create_app"],
    "settings": ["Settings"],
    "pipeline": ["run"],
    "report": ["report_html"],
}
_MODULE_OF = {name: module for module, names in _HOME_OF.items() for name in names}
__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str):
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'helios' has no attribute {name!r}")
    value = getattr(import_module(f"helios.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULE_OF])
