"""Tools as environments: a set of tasks, tools and a scorer make a `polyturn.envs.ToolEnv`."""
