"""What the passes and the planner ask of a program in the IR."""
