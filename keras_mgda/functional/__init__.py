"""Functional models, and where their tasks part.

A functional model is a graph: calls of layers, and the tensors between them.
Symbols: a task *reads* a tensor if its output depends on it, and a variable if
it reads the output of a call that uses the variable. Of a tensor `z`, and a
call `c`,

    R(z), R(c)   the set of tasks that read it,
    T            all tasks,
    V(c)         the variables of the layer that is called, frozen or not.

`Z`, the shared representation, is where what the tasks share ends:

1. each tensor with `R(z) = T` that comes from variables, and that a call with
   `R(output) != T` for one of its outputs reads, or that is an output;
2. where calls that step 1 leaves beside `Z` use variables that several tasks
   read, as those of a layer that is called once for each input, or an encoder
   that returns one tensor for each task: what such calls hand on to others.

`graph` says who reads what, `cut` finds `Z` by these steps, `marks` sets marks
there, and a `marked_functional` model has them without a change of its files.
"""
