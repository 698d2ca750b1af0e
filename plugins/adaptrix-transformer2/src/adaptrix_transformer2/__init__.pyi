"""The public names of this plugin; :func:`adaptrix.extend.lazy_names` reads them here."""

from collections.abc import Iterator

from adaptrix import Command
from adaptrix_transformer2.decomposition import Decomposition as Decomposition
from adaptrix_transformer2.decomposition import decomposed as decomposed
from adaptrix_transformer2.decomposition import decomposed_base as decomposed_base
from adaptrix_transformer2.experts import expert as expert
from adaptrix_transformer2.experts import save as save
from adaptrix_transformer2.experts import untrained as untrained
from adaptrix_transformer2.experts import z_of_expert as z_of_expert
from adaptrix_transformer2.guide import Transformer2Config as Transformer2Config
from adaptrix_transformer2.guide import Transformer2Model as Transformer2Model
from adaptrix_transformer2.guide import Transformer2Output as Transformer2Output
from adaptrix_transformer2.guide import create_transformer2_model as create_transformer2_model
from adaptrix_transformer2.published import read_published as read_published

def adaptrix_commands() -> Iterator[Command]: ...
