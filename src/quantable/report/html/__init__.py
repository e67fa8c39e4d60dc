"""Self-contained HTML pages of tables: claims, figures, and every run behind a number. No torch."""
