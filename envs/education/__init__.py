"""Education Dialogue: teach a topic to a student whose way of learning is hidden."""
