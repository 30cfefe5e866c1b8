"""Plans and what they follow from: graph, profile, costs, schedule (the one execution policy), and objectives."""
