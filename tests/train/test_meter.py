"""The meter counts a row once, over stages and over deliveries."""

import json

import numpy as np

from raymix.train.meter import Meter

TOKENS = np.array([3, 6, 9, 12, 15, 18, 21, 24, 27])


def test_rows_count_once_for_each_table_and_weights():
    meter = Meter()
    meter.looked_once("ants a", np.array([1, 1, 8]), TOKENS)
    assert meter.thirds == 6 + 27
    meter.looked_once("ants a", np.array([8, 0]), TOKENS)
    assert meter.thirds == 6 + 27 + 3
    meter.looked_once("ants b", np.array([8]), TOKENS)
    assert meter.thirds == 6 + 27 + 3 + 27


def test_what_goes_on_counts_what_is_new():
    meter = Meter()
    meter.looked_once("ants a", np.array([1, 8]), TOKENS)
    later = Meter(meter.thirds)
    later.restore(json.loads(json.dumps(meter.state())))
    later.looked_once("ants a", np.arange(9), TOKENS)
    assert later.thirds == TOKENS.sum()


def test_a_large_table_takes_little_room():
    meter = Meter()
    count = 1_000_000
    meter.looked_once("ants a", np.arange(count // 2), np.ones(count, dtype=np.int64))
    assert len(json.dumps(meter.state())) < 1000
