"""Where `routing_tap.RoutingTap` and its callback find what they tell each other: fields of an int64 array."""

LISTENS, REROUTES, CHOSEN, WEIGHTS, WANTED, FORCED, OUTPUTS, N_TOKENS, N_OUTPUTS, N_UBATCH = range(10)
# LATEST and the fields behind it: of each kind of tensor the latest layer, and three fields on the first token of the
# micro-batch that it belongs to.
N_BATCH, N_LAYER, N_EXPERT, N_USED, GET, SET, SCRATCH, LATEST = range(10, 18)
FIELDS = 32
TOPK, WEIGHT, LOGIT = 0, 1, 2
