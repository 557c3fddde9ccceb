"""Several problems on one text encoder.

```
parse             "cws&pos|sentiment": which problems share their examples
Problem           examples, head, loss and metrics of one
Tokenization      texts -> token ids, in training and in serving
dataset           problems -> batches, padded, sampled, bucketed by length
network           an encoder and problems -> inputs and outputs
compile_options   problems -> losses, metrics, missing labels
answers           outputs -> what is served
SpanF1, TokenAccuracy, PairLoss
                  what Keras has not
```

Each returns ordinary Keras and tf.data, to read and to change.
"""

from keras_mgda.problems.expression import parse
from keras_mgda.problems.network import TextPooling, network
from keras_mgda.problems.pairs import PairLoss
from keras_mgda.problems.pipeline import dataset
from keras_mgda.problems.problem import Problem, answers, compile_options
from keras_mgda.problems.tags import SpanF1, TokenAccuracy
from keras_mgda.problems.tokens import Tokenization

__all__ = [
    "PairLoss",
    "Problem",
    "SpanF1",
    "TextPooling",
    "TokenAccuracy",
    "Tokenization",
    "answers",
    "compile_options",
    "dataset",
    "network",
    "parse",
]
