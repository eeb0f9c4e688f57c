"""Configs: their files, their keys, and settings of the command line."""

from .files import Config, data_root, flatten, import_plugins, load_config, parse_options, plain
from .keys import RENAMED, with_new_names
from .stages import load_stages
