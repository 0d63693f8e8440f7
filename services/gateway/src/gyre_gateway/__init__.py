"""The gateway: ranks, recommends, tracks; assigns the arm, degrades rather than fails, writes down what it showed."""
