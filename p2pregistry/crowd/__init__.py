"""Who else wants or holds what this node wants: announces, have-streams, look-ups, and the sources they give."""
