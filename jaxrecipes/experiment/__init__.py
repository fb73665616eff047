"""From one config to a report: data, base, arms, measures, export."""
