"""Recipe files: where they are, what they may say, and what is wrong with one that says something else.

Only tasks see a recipe: leaves take plain keyword arguments, and a method the section it declared itself.
"""

from __future__ import annotations

from physcli.errors import RecipeError
from physcli.methods.settings import (
    Alignment,
    Critic,
    FieldSettings,
    JointField,
    LaMo,
    LayerSync,
    MethodSettings,
    MoAlign,
    Nft,
    ProjectorSettings,
    Repa,
    Rounds,
    Sft,
    TeacherView,
    Tsa,
    VideoJam,
    VideoRepa,
)
from physcli.packaged import recipe_folders
from physcli.recipe.files import find_recipe, list_recipes, schema_file
from physcli.recipe.reading import dump_recipe, read_recipe, recipe_schema
from physcli.recipe.schema import (
    AnyRecipe,
    Cached,
    Data,
    Denoising,
    EncoderRecipe,
    FieldPrediction,
    FuturePrediction,
    GeneratorRecipe,
    Lora,
    MotionFieldRecipe,
    MotionProjectorRecipe,
    MotionSubspace,
    Optimizer,
    RaterRecipe,
    Rating,
    Reconstruction,
    Schedule,
    Train,
    VaeRecipe,
    WindowChoice,
)
from physcli.sections import completed
from physcli.yaml12 import load_yaml
from physcli.yaml12 import read_text as recipe_text

__all__ = [
    "Alignment",
    "AnyRecipe",
    "Cached",
    "Critic",
    "Data",
    "Denoising",
    "EncoderRecipe",
    "FieldPrediction",
    "FieldSettings",
    "FuturePrediction",
    "GeneratorRecipe",
    "JointField",
    "LaMo",
    "LayerSync",
    "Lora",
    "MethodSettings",
    "MoAlign",
    "MotionFieldRecipe",
    "MotionProjectorRecipe",
    "MotionSubspace",
    "Nft",
    "Optimizer",
    "ProjectorSettings",
    "Rating",
    "RaterRecipe",
    "RecipeError",
    "Reconstruction",
    "Repa",
    "Rounds",
    "Schedule",
    "Sft",
    "TeacherView",
    "Train",
    "Tsa",
    "VaeRecipe",
    "VideoJam",
    "VideoRepa",
    "WindowChoice",
    "completed",
    "dump_recipe",
    "find_recipe",
    "list_recipes",
    "load_yaml",
    "read_recipe",
    "recipe_folders",
    "recipe_schema",
    "recipe_text",
    "schema_file",
]
