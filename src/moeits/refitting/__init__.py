"""The kept experts' down projections in closed form, so that each layer gives again what it gave with all experts."""
