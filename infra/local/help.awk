# Prints the targets of a Makefile with what stands behind their `##`, aligned and wrapped to 80 columns; with the
# variable `color` set, in colours.
BEGIN { FS = ":.*## " }

/^[a-z-]+:.*## / {
  names[++count] = $1
  texts[count] = $2
  if (length($1) > width) width = length($1)
}

END {
  target = "  " (color ? "\033[36m" : "") "%-" width "s" (color ? "\033[0m" : "")
  for (i = 1; i <= count; i++) {
    printf target, names[i]
    column = width + 2
    parts = split(texts[i], words, " ")
    for (j = 1; j <= parts; j++) {
      if (column + 1 + length(words[j]) > 80) {
        printf "\n%" (width + 2) "s", ""
        column = width + 2
      }
      printf " %s", words[j]
      column += 1 + length(words[j])
    }
    print ""
  }
}
