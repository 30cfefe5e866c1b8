"""Plans and what they follow from: graph, partition, profile, and the schedule, the one execution policy."""
