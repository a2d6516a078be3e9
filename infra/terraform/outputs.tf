output "store" {
  description = "For --store, and `store` in params.yaml. Datasets: this and /data; DVC's remote: this and /dvc."
  value       = "s3://${aws_s3_bucket.memoir.bucket}"
}

output "trainer_role" {
  description = "For the pods' service account."
  value       = aws_iam_role.trainer.arn
}

output "policies" {
  description = "To attach to people: reader; with it trainer, builder."
  value = {
    reader  = aws_iam_policy.reader.arn
    trainer = aws_iam_policy.trainer.arn
    builder = aws_iam_policy.builder.arn
  }
}
