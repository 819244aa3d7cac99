"""What the tables of the docs were measured with: minutes to hours each, on models beside the checkout. See docs/."""
