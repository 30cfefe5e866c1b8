"""What each command does: arguments in, a request to the planner, and its result printed."""
