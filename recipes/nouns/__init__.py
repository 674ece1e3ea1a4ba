"""How passes/_nouns.txt.gz was made: `python -m recipes.nouns FOLDER`, on WordNet's database files."""
