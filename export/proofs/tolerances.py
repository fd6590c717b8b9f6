"""The largest differences that the exporter allows, and why each has its value.

Each is absolute, unless its text says otherwise. A wrong gate, mask or axis causes more than 0.1.
"""

from __future__ import annotations

PYTORCH = 5e-4
"""Graphs from PyTorch in double precision.

Single precision alone causes 1e-4 on g2p-en (logits of the order of 10, through an attention whose scores are of the
order of 100); PyTorch's single precision differs as much from its double.
"""
RELATIVE = 1e-5
"""Allowed in addition to `PYTORCH`, relative to the largest value at the same place in a row's steps.

A sum of n products in single precision is off by up to n * 2^-24 of the sum of their magnitudes (Higham, Accuracy and
Stability of Numerical Algorithms, 2002, 3.1); this value is for n = 168. A place whose values are all small is
compared within `PYTORCH`, whatever values other places have.
"""
INT8 = 3.0
"""The int8 variant from the 32-bit graphs, in any value, over a whole sequence.

It only finds broken graphs. The sequences are random, and no model has learnt them. On g2p-en, whose logits are of the
order of 10, attention that moves to another letter changes a logit by 2.1. A language model with random weights differs
by 0.001. The recipe's own evaluation says what the difference costs.
"""
LOG_PROBABILITY = 2e-5
"""A head's log-probability, absolute plus relative: the error of a single-precision sum of some thousand terms."""
TRACE = 1e-4
"""A state in the trace graph from the step's own: other operators for the same equations."""
FILE = 1e-5
"""A bundle from another exporter's file: the same operators on the same numbers, with other rows."""
SCORES = 1e-5
"""A transducer's log-probabilities from a bare loop, besides NumPy's default relative 1e-5. Ids and states must be
equal bit by bit."""
EXPOSED = 1e-5
"""Steps with exposed states from the whole sequence: the same products, in matrices of other sizes."""
SEVERAL_STEPS = 1e-4
"""Steps at once from steps one by one in a file, or relative: the same numbers are multiplied in other groups."""
ROWS = 1e-4
"""Two rows in one run of a file from each row alone, absolute plus relative: only the last bits may change."""
ROWS_OF_TRANSDUCER = 1e-3
"""The same for the files of a transducer. It tells the batch axis from the time axis, which changes all digits."""
QUANTIZED_ROWS = 0.3
"""The same if the rows share a quantization scale."""
MASKED = 1e-5
"""A row with other numbers in its padding, absolute plus relative: the right mask keeps them out, a wrong one not."""
MODULE = 1e-3
"""A user's module called in two ways, absolute plus relative: PyTorch rounds tensors of other shapes differently."""
SUM_OF_PROBABILITIES = 1e-2
"""The sum of a file's probabilities from 1: sums of 16-bit floats differ from 1 by as much."""
