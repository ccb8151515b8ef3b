"""A trained model as scikit-learn has them, for its metrics and displays. Imports none of it; knows
nothing of graphs, jobs or hubs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from datahub.buyer.frames import Table
from datahub.errors import HubError

if TYPE_CHECKING:
    from datahub.buyer.results import Result

HALF = 0.5


class Estimator:
    """Takes tables as `Result.predict` does; a record without an answer is refused.

    target          predict                    predict_proba     classes_
    yes/no          0 or 1                     of 0 and 1        0, 1
    classes         a level                    of each level     the levels
    several yes/no  0 or 1 for each column     of yes for each   the columns
    number          a number in its own unit   -                 -
    """

    def __init__(self, result: Result):
        target = result.schema.target
        if target.kind == "time to event":
            raise HubError("to_sklearn: it knows no time to event; use predict, by interval")
        self._result, self._kind = result, target.kind
        self._estimator_type = "regressor" if target.kind == "number" else "classifier"
        self.feature_names_in_ = np.array([feature.name for feature in result.schema.features])
        self.n_features_in_ = len(self.feature_names_in_)
        if target.kind != "number":
            known: dict[str, Any] = {"classes": target.levels, "several yes/no": target.columns}
            self.classes_ = np.array(known.get(target.kind, (0, 1)))

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import Tags, TargetTags  # only scikit-learn itself asks

        from_sklearn: dict[str, Any] = {}
        if self._estimator_type == "classifier":
            from sklearn.utils import ClassifierTags

            from_sklearn["classifier_tags"] = ClassifierTags()
        return Tags(
            estimator_type=self._estimator_type,
            target_tags=TargetTags(required=False),
            **from_sklearn,
        )

    def fit(self, table: Table, outcome: Any = None) -> Estimator:
        """Raises HubError: hospitals have trained it."""
        raise HubError("fit: the hospitals have trained this model; order another job")

    def predict(self, table: Table) -> np.ndarray:
        """What each record is taken for: the likelier class, or the number."""
        if self._kind == "number":
            return self._columns(table)[:, 0]
        chance = self.predict_proba(table)
        if self._kind == "several yes/no":
            return np.asarray((chance > HALF).astype(np.int64))
        likeliest: np.ndarray = self.classes_[chance.argmax(axis=1)]
        return likeliest

    def predict_proba(self, table: Table) -> np.ndarray:
        """Probabilities [n, classes], in the order of `classes_`. Raises HubError for a number."""
        if self._kind == "number":
            raise HubError("predict_proba: the target is a number, which has no classes")
        found = self._columns(table)
        return np.column_stack([1 - found, found]) if self._kind == "yes/no" else found

    def _columns(self, table: Table) -> np.ndarray:
        found = np.column_stack(list(self._result.predict(table).values()))
        if np.isnan(found).any():
            lacking = np.flatnonzero(np.isnan(found).any(axis=1))
            raise HubError(
                f"{len(lacking)} records have no answer, for want of a value (the first is record "
                f"{lacking[0]}): leave them out, as the hospitals have done"
            )
        return found
