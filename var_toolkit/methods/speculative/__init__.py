"""Speculative decoding: drafts are checked in one pass of the target, and a rule decides which to accept.

`engine` asks a proposer (`jacobi`, `small_model`, `eagle`, `medusa`, `ngram`) for tokens and a rule (`rules`, `kseq`,
`lantern`, `grouped`, `decayed`, `judge`) for a verdict; `lengths` says how far to draft. Any of them goes with any
other, as far as the rule can serve the drafts. `next_scale` carries the idea over to models that draw an image scale by
scale.
"""
