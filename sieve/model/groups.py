"""Groups of matrices that share a gene: siblings with one V, and the neurons of an MLP."""

from dataclasses import replace

from sieve.model.matrices import Matrix


def siblings(matrices: list[Matrix]) -> list[Matrix]:
    """For each group of matrices with one input and one writer, one matrix with all their rows."""
    readers: dict[tuple[str, str | None], list[Matrix]] = {}
    for matrix in matrices:
        readers.setdefault((matrix.source, matrix.feeds), []).append(matrix)
    return [
        Matrix(
            name="+".join([group[0].name, *(m.name.split(".")[-1] for m in group[1:])]),
            d_out=sum(m.d_out for m in group),
            d_in=group[0].d_in,
            kind="+".join(m.kind for m in group),
            layer=group[0].layer,
            has_bias=group[0].has_bias,
            source=source,
            members=tuple(m.name for m in group),
        )
        for (source, _), group in readers.items()
        if len(group) > 1 and len({m.has_bias for m in group}) == 1
    ]


def narrowed(matrices: list[Matrix]) -> list[Matrix]:
    """For each writer whose inputs are neurons, the matrix of its feeders and itself, by neuron.

    A column (Σ d_in of the feeders + d_out,) has all that a neuron reads and writes.
    """
    feeders: dict[str | None, list[Matrix]] = {}
    for matrix in matrices:
        feeders.setdefault(matrix.feeds, []).append(matrix)
    groups = []
    for writer in (matrix for matrix in matrices if matrix.reads_neurons):
        members = [*feeders[writer.name], writer]
        groups.append(
            replace(
                writer,
                name=f"{writer.name}.neurons",
                d_out=sum(m.size for m in members) // writer.d_in,
                written=writer.d_out,
                kind="neurons",
                members=tuple(m.name for m in members),
                owner=None,
                owner_results=0,
                reads_neurons=False,
                neurons=True,
            )
        )
    return groups
