"""Table tennis: ball, robot, sensing and the tasks they make together."""
