"""A Hydra sweeper on Optuna that prunes, resumes and shares a study: `hydra/sweeper=halflife`.

Nothing heavy is imported here: Hydra loads every plugin whenever an app starts.
"""

from hydra_plugins.halflife_sweeper._trial import judge, report

__all__ = ["judge", "report"]
