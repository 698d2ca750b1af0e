"""The names of :mod:`adaptrix.extend`; :mod:`adaptrix.exports` reads them here.

Those that need torch say so. Modules (``atomic``, ``torch_file`` …) are used by their names: ``atomic.output(path)``.
"""

# Errors: raise what `adaptrix` exports, with every problem at once.
from adaptrix.errors import errors_in as errors_in  # the errors among some problems
from adaptrix.errors import refuse as refuse  # a RefusedError of one problem
from adaptrix.wording import amount as amount  # bytes as people write them
from adaptrix.wording import some as some  # the first few of many names

# From an adapter to a file.
from adaptrix.pipeline import Pipeline as Pipeline  # read, bind, check, plan, write; its catalog has all records
from adaptrix.options import Options as Options  # of a conversion, as the command line has them
from adaptrix.options import require_options as require_options  # refuses what no conversion can do
from adaptrix.results import Conversion as Conversion  # what Pipeline.write and .publish return
from adaptrix.binding.bind import bind as bind  # an adapter on a family: deltas by site, all shapes checked
from adaptrix.binding.identify import Identity as Identity  # a family and its dimensions
from adaptrix.binding.identify import family_of as family_of  # the Identity of a base's config
from adaptrix.planning.plan import make_plan as make_plan  # the plan of a policy
from adaptrix.planning.plan import require_policy as require_policy  # before anything is loaded
from adaptrix.destination import require_apart as require_apart  # refuses an output over its source
from adaptrix.destination import require_folder as require_folder  # refuses a folder that is missing

# Architectures.
from adaptrix.architecture import Role as Role  # what a weight does, its path, shape and orientation
from adaptrix.architecture.dialect import Dialect as Dialect  # the names that a format has for a family's modules
from adaptrix.architecture.dialect_file import read_dialects as read_dialects  # of a folder, <format>/<family>.toml
from adaptrix.architecture.dims import Dims as Dims  # sizes of a base by name, and where each came from
from adaptrix.architecture.layout import RowIndex as RowIndex  # row numbers, an array of int64
from adaptrix.architecture.layout import role_rows as role_rows  # the rows of each part of a fused weight
from adaptrix.architecture.registry import parse_architecture as parse_architecture  # of a table of TOML
from adaptrix.architecture.registry import read_architecture as read_architecture  # of one TOML file
from adaptrix.architecture.registry import read_architectures as read_architectures  # of all in a folder

# Deltas and tensors.
from adaptrix.delta import fuse as fuse  # deltas on parts of a weight as one on the whole, exactly
from adaptrix.delta import split as split  # the other way round
from adaptrix.tensor import FLOATS as FLOATS  # names of the floating-point dtypes
from adaptrix.torch_tensor import as_stored as as_stored  # a stored tensor of torch's; torch
from adaptrix.torch_tensor import as_torch as as_torch  # torch's tensor of a stored one; torch
from adaptrix.torch_tensor import storable as storable  # dtypes that as_stored takes; torch

# Formats with names of their own: a reader sets Adapter.dialect, a writer asks for these.
from adaptrix.formats.spoken import Spoken as Spoken  # a delta by its name and in the row order of a format
from adaptrix.formats.spoken import spoken as spoken  # all deltas of a plan so
from adaptrix.formats.spoken import require_untied as require_untied  # refuses an embedding that is the head too

# Files: bounded readers that run no code, and outputs that appear whole or not at all.
from adaptrix import atomic as atomic  # output, require_free
from adaptrix import json_file as json_file  # read_object
from adaptrix import yaml_file as yaml_file  # read_mapping
from adaptrix.formats import safetensors_file as safetensors_file  # read, write
from adaptrix.formats import torch_file as torch_file  # read

# Base models, from a folder or the Hub.
from adaptrix.base.checkpoint import BaseCheckpoint as BaseCheckpoint  # config and stored tensors of a base
from adaptrix.base.fetch import fetch_base as fetch_base  # the BaseCheckpoint of a uri
from adaptrix.base.fetch import model_folder as model_folder  # the files of a model, for transformers to load
from adaptrix.base.loading import load_tokenizer as load_tokenizer  # of a folder; torch
from adaptrix.base.loading import load_whole as load_whole  # the model of a folder, by transformers; torch
from adaptrix.base.model import BaseModel as BaseModel  # a causal base: its tokenizer and model when asked for; torch
from adaptrix.base.model import base_model_at as base_model_at  # the BaseModel of a uri; torch
from adaptrix.base.model import base_model_of as base_model_of  # the BaseModel of a model in memory; torch
from adaptrix.base.model import Placement as Placement  # device and dtype; torch
from adaptrix.base.model import placement as placement  # the Placement of two names; torch
from adaptrix.base.model import context_of as context_of  # positions that a model has; torch
from adaptrix.base.model import require_causal as require_causal  # refuses what reads tokens that come later; torch
from adaptrix.base.model import require_in_vocabulary as require_in_vocabulary  # refuses unknown tokens; torch
from adaptrix.base.svd import SvdCache as SvdCache  # singular vectors of weights, computed once and kept
from adaptrix.base.svd import spectral_delta as spectral_delta  # z on a weight, with its singular vectors
from adaptrix.runtime.modules import reached as reached  # a model's modules by site; torch
from adaptrix.runtime.modules import require_plain as require_plain  # refuses wrapped and compiled models; torch

# Commands.
from adaptrix.cli.common import Verbosity as Verbosity  # what a command takes as `verbosity`
from adaptrix.cli.common import verbosity_options as verbosity_options  # --json, -q, -v
from adaptrix.cli.common import base_option as base_option  # --base, of which the config is read
from adaptrix.cli.common import whole_base_option as whole_base_option  # --base, of which the weights are read
from adaptrix.cli.common import output_options as output_options  # -o, --to, --dtype, --name, --force
from adaptrix.cli.common import offering as offering  # completions of an option that checks its words itself
from adaptrix.cli.common import print_json as print_json  # one document on standard output
from adaptrix.cli.common import show_problems as show_problems  # on standard error, errors first
from adaptrix.cli.common import clean as clean  # text without control characters
from adaptrix.cli.common import bars as bars  # progress of things that are counted
from adaptrix.cli.common import working as working  # a spinner
from adaptrix.cli.plot import save_figure as save_figure  # a figure of matplotlib's as a file
from adaptrix.progress import Counted as Counted  # the type of what `bars` returns
from adaptrix.progress import uncounted as uncounted  # one that shows nothing

# Public names of a plugin's own.
from adaptrix.exports import lazy_names as lazy_names  # a module's names from the stub beside it
from adaptrix.exports import renamed_names as renamed_names  # names of the version before
from adaptrix.exports import renamed_parameters as renamed_parameters  # parameters of the version before

# Shapes of `--json` outputs, and numbers in them.
from adaptrix.schemas.shared import AdapterJSON as AdapterJSON  # an adapter
from adaptrix.schemas.shared import Number as Number  # a number, null where it is not finite
from adaptrix.schemas.shared import ReportJSON as ReportJSON  # the fields that every output has
from adaptrix.schemas.shared import WrittenJSON as WrittenJSON  # what a command wrote
from adaptrix.schemas.values import number as number  # a number for JSON
