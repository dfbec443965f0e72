"""The record of sweeps goes with backups from a server to a file and on; what cannot go is said and stays."""

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from optuna.storages import RDBStorage

from helios import sweep_tables
from helios.migrations import back_up_server, prepare, restore_server
from helios.values import StoreError

optuna.logging.set_verbosity(optuna.logging.ERROR)


def make_study(url: str, name: str) -> None:
    """A study with a trial of each kind, as sweeps leave them."""
    storage = RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    study = optuna.create_study(storage=storage, study_name=name, direction="maximize")
    study.set_user_attr("plan", {"n_trials": 3})
    for n, state in enumerate((optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.FAIL)):
        trial = study.ask()
        trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
        trial.suggest_categorical("hidden", [32, 64])
        trial.report(0.5 + n, 4)
        trial.set_user_attr("facts", f'{{"best_epoch": {n}}}')
        study.tell(trial, 0.25 if state.name == "COMPLETE" else None, state)
    study.ask()  # one under way
    storage.engine.dispose()


def story(url: str) -> dict:
    """All that is known of all studies."""
    storage = RDBStorage(url.replace("postgresql:", "postgresql+psycopg:"))
    found = {}
    for study in optuna.get_all_study_summaries(storage):
        trials = optuna.load_study(study_name=study.study_name, storage=storage).trials
        found[study.study_name] = study.user_attrs, [
            (t.number, t.state.name, t.values, t.params, t.distributions, t.intermediate_values, t.user_attrs, t.datetime_start) for t in trials]
    storage.engine.dispose()
    return found


@pytest.fixture
def server(postgres_url, home):
    engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    prepare(engine, "server")
    yield engine
    engine.dispose()


@pytest.fixture
def other_url(postgres_server):
    """A second schema on the server."""
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as conn:
        conn.execute("CREATE SCHEMA another")
    yield f"{postgres_server.get_uri()}&options=-csearch_path%3Danother"
    with psycopg.connect(postgres_server.get_uri(), autocommit=True) as conn:
        conn.execute("DROP SCHEMA another CASCADE")


def test_they_go_from_a_server_to_a_file_and_to_another_server(server, postgres_url, other_url, tmp_path):
    for name in ("one", "two"):
        make_study(postgres_url, name)
    before = story(postgres_url)
    backup = back_up_server(server, tmp_path / "backup.db")
    assert story(f"sqlite:///{backup}") == before and len(before["one"][1]) == 4
    other = sa.create_engine(other_url.replace("postgresql:", "postgresql+psycopg:"), poolclass=sa.NullPool)
    done = restore_server(other, backup)
    assert done["left_out"] is None and done["saved"] is None
    assert story(other_url) == before
    # and they go on: identifiers are given out past those that came along
    storage = RDBStorage(other_url.replace("postgresql:", "postgresql+psycopg:"))
    study = optuna.load_study(study_name="two", storage=storage)
    trial = study.ask()
    study.tell(trial, 0.5)
    optuna.create_study(storage=storage, study_name="three")
    assert (trial.number, study.best_value, len(story(other_url))) == (4, 0.5, 3)
    storage.engine.dispose()
    other.dispose()


def test_they_are_replaced_only_if_that_is_said(server, postgres_url, tmp_path):
    empty = back_up_server(server, tmp_path / "empty.db")
    make_study(postgres_url, "mine")
    mine = back_up_server(server, tmp_path / "mine.db")
    with server.begin() as conn:
        sweep_tables.clear_sweeps(conn)
    make_study(postgres_url, "theirs")
    before = story(postgres_url)
    with pytest.raises(StoreError, match="holds rows in studies; give --replace"):
        restore_server(server, mine)
    assert story(postgres_url) == before
    done = restore_server(server, mine, replace=True)
    assert list(story(postgres_url)) == ["mine"] and story(f"sqlite:///{done['saved']}") == before
    restore_server(server, empty, replace=True)
    assert story(postgres_url) == {}


def test_a_server_whose_tables_were_only_made_is_not_full(server, postgres_url, tmp_path):
    make_study(f"sqlite:///{tmp_path / 'file.db'}", "mine")
    with sa.create_engine(f"sqlite:///{tmp_path / 'file.db'}").connect() as conn:
        prepare(conn.engine, "file")
    RDBStorage(postgres_url.replace("postgresql:", "postgresql+psycopg:")).engine.dispose()
    restore_server(server, tmp_path / "file.db")
    assert list(story(postgres_url)) == ["mine"]


@pytest.mark.parametrize("why", ["another version", "not installed"])
def test_what_cannot_go_is_said_and_stays(server, postgres_url, tmp_path, monkeypatch, why):
    make_study(f"sqlite:///{tmp_path / 'file.db'}", "mine")
    with sa.create_engine(f"sqlite:///{tmp_path / 'file.db'}").connect() as conn:
        prepare(conn.engine, "file")
    make_study(postgres_url, "theirs")
    if why == "not installed":
        monkeypatch.setattr(sweep_tables, "_tables", lambda: None)
    else:
        with server.begin() as conn:
            conn.exec_driver_sql("ALTER TABLE trial_heartbeats ADD COLUMN colour TEXT")
    with server.connect() as conn:
        assert why in sweep_tables.why_left_out(conn)
    backup = back_up_server(server, tmp_path / "backup.db")
    with sa.create_engine(f"sqlite:///{backup}").connect() as conn:
        assert not sa.inspect(conn).has_table("studies")
    assert why in restore_server(server, tmp_path / "file.db", replace=True)["left_out"]
    with server.connect() as conn:
        assert conn.exec_driver_sql("SELECT study_name FROM studies").scalars().all() == ["theirs"]
