"""How fast detres is beside its peers: what is measured (a case), and how (agreement, rounds, memory, ceiling)."""
