"""Which rank where: lines, water-filling and evolution, scored and confirmed."""
